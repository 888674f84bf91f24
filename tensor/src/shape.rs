//! Shapes: up to six dimensions, by value.

use std::fmt;
use std::ops::Deref;

/// The highest rank a tensor can have.
pub const MAX_RANK: usize = 6;

/// The extents of a tensor, outermost first. Dereferences to `[usize]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; MAX_RANK],
    rank: u8,
}

impl Shape {
    /// # Panics
    /// Above [`MAX_RANK`] dimensions: ranks come from code, not from files (whose readers check them).
    pub fn new(dims: &[usize]) -> Shape {
        assert!(
            dims.len() <= MAX_RANK,
            "rank {} is above the highest supported, {MAX_RANK}",
            dims.len()
        );
        let mut shape = Shape {
            dims: [0; MAX_RANK],
            rank: dims.len() as u8,
        };
        shape.dims[..dims.len()].copy_from_slice(dims);
        shape
    }

    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank as usize]
    }

    pub fn dims_mut(&mut self) -> &mut [usize] {
        &mut self.dims[..self.rank as usize]
    }

    /// Number of elements; 1 for rank 0.
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }

    /// The last extent, 1 for rank 0.
    pub fn last_dim(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// The shape with more dimensions inside.
    ///
    /// # Panics
    /// As [`Shape::new`].
    pub fn appended(&self, inner: &[usize]) -> Shape {
        Shape::new(&[self.dims(), inner].concat())
    }

    /// Row-major strides, in elements.
    pub fn strides(&self) -> Shape {
        let mut strides = *self;
        let mut stride = 1;
        for (s, &d) in strides.dims_mut().iter_mut().zip(self.dims()).rev() {
            *s = stride;
            stride *= d.max(1);
        }
        strides
    }

    /// The common shape of two broadcast operands (NumPy's rule), if there is one.
    pub fn broadcast(a: &Shape, b: &Shape) -> Option<Shape> {
        let rank = a.len().max(b.len());
        // Dimensions that a shape does not have are 0 in every shape, so that equal shapes are equal bits.
        let mut out = Shape {
            dims: [0; MAX_RANK],
            rank: rank as u8,
        };
        for i in 0..rank {
            let extent = |s: &Shape| {
                if i < s.len() {
                    s.dims()[s.len() - 1 - i]
                } else {
                    1
                }
            };
            out.dims[rank - 1 - i] = match (extent(a), extent(b)) {
                (x, y) if x == y => x,
                (1, y) => y,
                (x, 1) => x,
                _ => return None,
            };
        }
        Some(out)
    }
}

impl Deref for Shape {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        self.dims()
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Shape {
        Shape::new(dims)
    }
}

impl From<&Vec<usize>> for Shape {
    fn from(dims: &Vec<usize>) -> Shape {
        Shape::new(dims)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Shape {
        Shape::new(&dims)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_follows_numpy() {
        let broadcast = |a: &[usize], b: &[usize]| Shape::broadcast(&a.into(), &b.into());
        assert_eq!(broadcast(&[3, 1], &[1, 4]), Some(Shape::new(&[3, 4])));
        assert_eq!(broadcast(&[5], &[2, 3, 5]), Some(Shape::new(&[2, 3, 5])));
        assert_eq!(broadcast(&[], &[2]), Some(Shape::new(&[2])));
        assert_eq!(broadcast(&[], &[]), Some(Shape::new(&[])));
        assert_eq!(broadcast(&[3], &[2]), None);
    }
}
