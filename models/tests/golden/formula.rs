//! Numbers that both languages make alike: the other half of `tools/golden/formula.py`.

use autograd::{DType, Device, FileLayout, Params, Tensor};
use models::{Loaded, Model, declare};

/// The deviation of a uniform number in −1 to 1 is one over this.
const SPREAD: f64 = 1.732_050_807_568_877_2;
/// Tensors of at most this many values are stored whole.
const WHOLE: usize = 64;

pub const FNV: u64 = 0xCBF2_9CE4_8422_2325;

/// A byte more in an FNV-1a hash.
pub fn hashed(hash: u64, byte: u8) -> u64 {
    (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
}

/// FNV-1a of the name's bytes.
pub fn hash_of(name: &str) -> u64 {
    name.bytes().fold(FNV, hashed)
}

/// SplitMix64 from the name's hash.
pub fn words(name: &str) -> impl Iterator<Item = u64> + use<> {
    let start = hash_of(name);
    (1..).map(move |i: u64| {
        let z = start.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

/// Numbers in −1 to 1.
fn uniform(name: &str) -> impl Iterator<Item = f64> + use<> {
    words(name).map(|word| (word >> 11) as f64 / (1u64 << 52) as f64 - 1.0)
}

/// An input or a noise in PyTorch's layout: mean 0, deviation 1.
pub fn values(name: &str, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    let values: Vec<f64> = uniform(name).take(count).map(|u| u * SPREAD).collect();
    Tensor::from_f64(&values, shape, DType::F64, Device::Cpu)
}

/// A parameter in PyTorch's layout.
pub fn weight(case: &str, name: &str, shape: &[usize]) -> Tensor {
    let count = shape.iter().product();
    let numbers = uniform(&format!("{case}/{name}")).take(count);
    let fan_in: usize = shape.iter().skip(1).product();
    let values: Vec<f64> = if name == "logit_scale" {
        vec![2.0; count]
    } else if name == "clip_std" || (shape.len() == 1 && name.ends_with("weight")) {
        numbers.map(|u| 1.0 + 0.25 * u).collect()
    } else if shape.len() > 1 {
        let factor = (3.0 / fan_in as f64).sqrt();
        numbers.map(|u| u * factor).collect()
    } else {
        numbers.map(|u| 0.1 * u).collect()
    };
    Tensor::from_f64(&values, shape, DType::F64, Device::Cpu)
}

/// A model with the weights that the formula gives it.
pub fn filled<M: Model>(case: &str, config: &M::Config, dtype: DType) -> Loaded<M> {
    let (model, layout) = declare::<M>(config).unwrap();
    let mut params = Params::zeros(layout.clone(), dtype, Device::Cpu);
    for (id, info) in layout.iter() {
        let value = weight(case, &info.name, &info.file_shape());
        let value = match info.file_layout {
            FileLayout::Same => value,
            FileLayout::Oihw => inward(&value),
        };
        params.set(id, &value).unwrap();
    }
    Loaded { model, params }
}

/// [n, c, h, w] → [n, h, w, c]; other ranks as they are.
pub fn inward(x: &Tensor) -> Tensor {
    match x.rank() {
        4 => x.permute(&[0, 2, 3, 1]).unwrap().contiguous().unwrap(),
        _ => x.clone(),
    }
}

/// [n, h, w, c] → [n, c, h, w]; other ranks as they are.
pub fn outward(x: &Tensor) -> Tensor {
    match x.rank() {
        4 => x.permute(&[0, 3, 1, 2]).unwrap(),
        _ => x.clone(),
    }
}

/// What is stored of a large tensor: of every `block` values one sum with random weights.
pub fn digest(name: &str, values: &[f64], block: usize) -> Vec<f64> {
    if values.len() <= WHOLE {
        return values.to_vec();
    }
    let weights: Vec<f64> = uniform(&format!("digest/{name}"))
        .take(values.len())
        .collect();
    let blocks = values.chunks(block).zip(weights.chunks(block));
    blocks
        .map(|(values, weights)| values.iter().zip(weights).map(|(v, w)| v * w * 0.25).sum())
        .collect()
}
