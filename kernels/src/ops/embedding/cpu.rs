//! Table look-up on the CPU.

use crate::{Accum, Buffer, Float, multiversion, parallel};

const PART: usize = 8 * 1024;

/// `y[i] = table[ids[i]]`, rows of `c` elements.
///
/// # Panics
/// If an id leaves the table, or the lengths do not match.
pub fn forward<T: Float>(y: &mut [T], table: &[T], ids: &[i32], c: usize) {
    assert_eq!(y.len(), ids.len() * c);
    let rows = (PART / c.max(1)).max(1);
    parallel::chunks_mut(y, rows * c, |i, y| {
        for (y, &id) in y.chunks_exact_mut(c).zip(&ids[i * rows..]) {
            y.copy_from_slice(&table[id as usize * c..][..c]);
        }
    });
}

/// `dtable[v] (+)= Σ dy[i] over all i with ids[i] = v`, added in order of i.
///
/// Positions are sorted by id first, so that each row of the table has one writer and the sum one order.
///
/// # Panics
/// If an id leaves the table, or the lengths do not match.
pub fn backward<T: Float>(dtable: &mut [T], accum: Accum, dy: &[T], ids: &[i32], c: usize) {
    assert_eq!(dy.len(), ids.len() * c);
    if c == 0 {
        return;
    }
    let table_rows = dtable.len() / c;
    assert!(ids.iter().all(|&id| (id as usize) < table_rows));
    let mut scratch = Buffer::uninit(std::mem::size_of_val(ids));
    let order: &mut [i32] = scratch.as_mut_slice();
    for (position, slot) in order.iter_mut().enumerate() {
        *slot = position as i32;
    }
    order.sort_unstable_by_key(|&position| (ids[position as usize], position));
    let order = &*order;
    let rows = (PART / c).max(1);
    parallel::chunks_mut(dtable, rows * c, |i, dtable| {
        let first = order.partition_point(|&p| (ids[p as usize] as usize) < i * rows);
        sum_rows_leaf(dtable, accum, dy, ids, &order[first..], c, i * rows)
    });
}

multiversion! {
    /// Sums into the rows that begin with `first_row`; `order` begins with the positions of their ids.
    fn sum_rows_leaf<T: Float>(dtable: &mut [T], accum: Accum, dy: &[T], ids: &[i32], order: &[i32], c: usize, first_row: usize) {
        let mut order = order.iter().map(|&p| p as usize).peekable();
        for (row, dst) in dtable.chunks_exact_mut(c).enumerate() {
            let id = first_row + row;
            if accum == Accum::Replace {
                dst.fill(T::ZERO);
            }
            while let Some(position) = order.next_if(|&p| ids[p] as usize == id) {
                for (d, &g) in dst.iter_mut().zip(&dy[position * c..][..c]) {
                    *d = *d + g;
                }
            }
        }
    }
}
