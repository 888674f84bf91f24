//! Properties of shapes and views, over random shapes: each view shows the elements that its definition says.

use proptest::prelude::*;
use tensor::{DType, Device, Shape, Tensor};

/// Elements 0, 1, 2, … in row-major order.
fn counting(dims: &[usize]) -> Tensor {
    let data: Vec<f64> = (0..dims.iter().product::<usize>())
        .map(|i| i as f64)
        .collect();
    Tensor::from_f64(&data, dims, DType::F64, Device::Cpu)
}

fn dims() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1usize..5, 0..5)
}

/// A shape and another that it broadcasts with: some extents are 1 in one of them, some leading ones are missing.
fn broadcastable() -> impl Strategy<Value = (Vec<usize>, Vec<usize>)> {
    let extents = prop::collection::vec((1usize..5, 0u8..3), 0..5);
    (extents, 0usize..5, 0usize..5).prop_map(|(extents, skip_a, skip_b)| {
        let of = |one: u8| -> Vec<usize> {
            let extent = |&(extent, which): &(usize, u8)| if which == one { 1 } else { extent };
            extents.iter().map(extent).collect()
        };
        let (a, b) = (of(1), of(2));
        // At most one of the two is shorter, so that the longer one has all dimensions.
        let (from_a, from_b) = match skip_a < skip_b {
            true => (0, skip_b.min(b.len())),
            false => (skip_a.min(a.len()), 0),
        };
        (a[from_a..].to_vec(), b[from_b..].to_vec())
    })
}

/// The index of element `flat` of an array of shape `dims`.
fn unravel(mut flat: usize, dims: &[usize]) -> Vec<usize> {
    let mut index = vec![0; dims.len()];
    for (i, &extent) in index.iter_mut().zip(dims).rev() {
        *i = flat % extent;
        flat /= extent;
    }
    index
}

fn ravel(index: &[usize], dims: &[usize]) -> usize {
    index
        .iter()
        .zip(dims)
        .fold(0, |flat, (&i, &extent)| flat * extent + i)
}

/// NumPy's rule, element by element: the index into an operand of shape `dims` for one of the result.
fn operand_index(index: &[usize], dims: &[usize]) -> Vec<usize> {
    let missing = index.len() - dims.len();
    let pairs = index[missing..].iter().zip(dims);
    pairs
        .map(|(&i, &extent)| if extent == 1 { 0 } else { i })
        .collect()
}

proptest! {
    #[test]
    fn broadcasting_is_numpys_rule((a, b) in broadcastable()) {
        let (a, b) = (Shape::new(&a), Shape::new(&b));
        let out = Shape::broadcast(&a, &b);
        prop_assert_eq!(out, Shape::broadcast(&b, &a));
        let out = out.expect("made to fit");
        prop_assert_eq!(Shape::broadcast(&out, &a), Some(out));
        prop_assert_eq!(out.len(), a.len().max(b.len()));
    }

    #[test]
    fn unequal_extents_above_one_never_broadcast(a in dims(), at in 0usize..5) {
        prop_assume!(!a.is_empty());
        let mut b = a.clone();
        let at = at % a.len();
        b[at] += 5;
        let fits = Shape::broadcast(&Shape::new(&a), &Shape::new(&b)).is_some();
        prop_assert_eq!(fits, a[at] == 1);
    }

    #[test]
    fn a_broadcast_view_repeats_the_right_elements((a, b) in broadcastable()) {
        let out = Shape::broadcast(&Shape::new(&a), &Shape::new(&b)).expect("made to fit");
        let x = counting(&a);
        let view = x.broadcast_to(out).unwrap().to_f64_vec().unwrap();
        for (flat, &value) in view.iter().enumerate() {
            let from = operand_index(&unravel(flat, &out), &a);
            prop_assert_eq!(value, ravel(&from, &a) as f64);
        }
    }

    #[test]
    fn a_permutation_and_its_inverse_cancel(dims in dims(), keys in prop::collection::vec(any::<u32>(), 5)) {
        let x = counting(&dims);
        let mut order: Vec<usize> = (0..dims.len()).collect();
        order.sort_by_key(|&d| keys[d]);
        let mut inverse = vec![0; order.len()];
        for (i, &d) in order.iter().enumerate() {
            inverse[d] = i;
        }
        let y = x.permute(&order).unwrap();
        prop_assert!(y.permute(&inverse).unwrap().bit_equal(&x));
        prop_assert!(y.contiguous().unwrap().permute(&inverse).unwrap().bit_equal(&x));
    }

    #[test]
    fn reshaping_keeps_row_major_order_of_any_view(dims in dims(), keys in prop::collection::vec(any::<u32>(), 5)) {
        let mut order: Vec<usize> = (0..dims.len()).collect();
        order.sort_by_key(|&d| keys[d]);
        let view = counting(&dims).permute(&order).unwrap();
        let flat = view.reshape([view.len()]).unwrap();
        prop_assert_eq!(flat.to_f64_vec().unwrap(), view.to_f64_vec().unwrap());
        prop_assert!(flat.reshape(view.shape()).unwrap().bit_equal(&view));
    }

    #[test]
    fn narrowing_twice_is_narrowing_once(dims in dims(), dim in 0usize..5, cuts in prop::array::uniform4(0usize..100)) {
        prop_assume!(!dims.is_empty());
        let dim = dim % dims.len();
        let (start, len) = cut(dims[dim], cuts[0], cuts[1]);
        let (inner_start, inner_len) = cut(len, cuts[2], cuts[3]);
        let x = counting(&dims);
        let twice = x.narrow(dim, start, len).unwrap().narrow(dim, inner_start, inner_len).unwrap();
        prop_assert!(twice.bit_equal(&x.narrow(dim, start + inner_start, inner_len).unwrap()));
    }

    #[test]
    fn a_copy_of_a_view_is_contiguous_alone_and_the_same(dims in dims(), dim in 0usize..5, cuts in prop::array::uniform2(0usize..100)) {
        prop_assume!(!dims.is_empty());
        let dim = dim % dims.len();
        let (start, len) = cut(dims[dim], cuts[0], cuts[1]);
        let view = counting(&dims).narrow(dim, start, len).unwrap();
        let mut copy = view.detach_copy().unwrap();
        prop_assert!(copy.is_writable() && copy.bit_equal(&view));
        let copy = view.contiguous().unwrap();
        prop_assert!(copy.is_contiguous() && copy.bit_equal(&view));
    }

    #[test]
    fn what_leaves_a_tensor_is_refused(dims in dims(), dim in 0usize..7, start in 0usize..7, len in 0usize..7) {
        let x = counting(&dims);
        let fits = dim < dims.len() && start + len <= dims[dim];
        prop_assert_eq!(x.narrow(dim, start, len).is_ok(), fits);
        prop_assert_eq!(x.reshape([len]).is_ok(), x.len() == len);
        prop_assert_eq!(x.permute(&vec![start; dims.len()]).is_ok(), dims.is_empty() || (dims.len() == 1 && start == 0));
    }

    #[test]
    fn integers_survive_every_dtype_that_holds_them(values in prop::collection::vec(0u8..=255, 0..20)) {
        let data: Vec<f64> = values.iter().map(|&v| v as f64).collect();
        // bf16 holds integers to 256 exactly, f16 to 2048.
        for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16, DType::I32, DType::I64, DType::U8] {
            let x = Tensor::from_f64(&data, [data.len()], dtype, Device::Cpu);
            prop_assert_eq!(x.to_f64_vec().unwrap(), data.clone());
            prop_assert_eq!(x.cast(DType::F64).unwrap().to_f64_vec().unwrap(), data.clone());
        }
    }
}

/// A range inside `extent`, from two random numbers.
fn cut(extent: usize, a: usize, b: usize) -> (usize, usize) {
    let start = a % (extent + 1);
    (start, b % (extent - start + 1))
}
