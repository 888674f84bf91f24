//! What holds for every model: sizes, shapes, gradients, recompute, files.

mod common;

use autograd::{DType, Decay, Device, ParamGrads, ParamId, Params, Tape, Var};
use common::*;
use models::architecture::Architecture;
use models::clip::{
    CLIPConfig, CLIPModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection,
    INITIAL_LOGIT_BIAS, SIGMOID_LOGIT_SCALE,
};
use models::pipeline::Pipeline;
use models::prior::{PriorConfig, PriorTransformer};
use models::text_proj::{UnCLIPTextProjConfig, UnCLIPTextProjModel};
use models::tokenizer::Tokenizer;
use models::unet::{UNet2DConditionConfig, UNet2DConditionModel, UNet2DConfig, UNet2DModel};
use models::weights::{self, Precision};
use models::{Error, Folder, Loaded, Model, declare};

/// Parameters and tensors of a configuration, counted without allocating any.
fn count<M: Model>(config: &M::Config) -> (usize, usize) {
    let (_, layout) = declare::<M>(config).unwrap();
    (layout.parameters(), layout.len())
}

#[test]
fn karlo_has_as_many_parameters_as_karlo() {
    assert_eq!(
        count::<PriorTransformer>(&PriorConfig::default()),
        (1_022_030_080, 338)
    );
    assert_eq!(
        count::<UNet2DConditionModel>(&UNet2DConditionConfig::karlo()),
        (885_439_686, 716)
    );
    assert_eq!(
        count::<UnCLIPTextProjModel>(&UnCLIPTextProjConfig::karlo()),
        (7_878_400, 11)
    );
    assert_eq!(
        count::<UNet2DModel>(&UNet2DConfig::karlo()),
        (691_579_523, 408)
    );
}

#[test]
fn architectures_have_the_counts_that_the_documentation_derives() {
    let counts = |architecture: Architecture| -> Vec<(&'static str, usize)> {
        let parts = architecture.parts().unwrap();
        parts.iter().map(|p| (p.name, p.parameters)).collect()
    };
    let clip = [
        ("text_encoder", 123_650_304),
        ("image_encoder", 303_966_208),
    ];
    assert_eq!(
        counts(Architecture::karlo()),
        [
            clip.as_slice(),
            &[
                ("prior", 1_022_030_080),
                ("text_proj", 7_878_400),
                ("decoder", 885_439_686),
                ("super_res_first", 691_579_523),
                ("super_res_last", 691_579_523),
            ]
        ]
        .concat()
    );
    assert_eq!(
        counts(Architecture::small()),
        [
            clip.as_slice(),
            &[
                ("prior", 88_664_064),
                ("text_proj", 4_136_448),
                ("decoder", 314_921_286),
                ("super_res_first", 194_075_139),
                ("super_res_last", 194_075_139),
            ]
        ]
        .concat()
    );
    assert_eq!(
        counts(Architecture::tiny()),
        [
            ("text_encoder", 171_776),
            ("image_encoder", 120_832),
            ("prior", 127_552),
            ("text_proj", 37_632),
            ("decoder", 861_638),
            ("super_res_first", 695_235),
            ("super_res_last", 695_235),
        ]
    );
    assert_eq!(
        counts(Architecture::paper()),
        [
            ("text_encoder", 354_215_936),
            ("image_encoder", 632_307_200),
            ("prior", 1_225_927_680),
            ("text_proj", 14_699_520),
            ("decoder", 2_238_164_486),
            ("super_res_first", 691_579_523),
            ("super_res_last", 691_579_523),
            ("super_res_1024", 267_146_691),
        ]
    );
}

#[test]
fn a_new_model_is_written_as_training_begins_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let architecture = Architecture::tiny();
    let context = architecture.text_encoder.max_position_embeddings;
    let tokenizer = Tokenizer::from_merges(&[], context).unwrap();
    let mut told = Vec::new();
    architecture
        .create(dir.path(), &tokenizer, 7, Precision::Full, |name| {
            told.push(name)
        })
        .unwrap();
    assert_eq!(told.len(), 7);
    assert!(Pipeline::load(dir.path(), DType::F32, Device::Cpu).is_ok());
    let init = Loaded::<UNet2DConditionModel>::init;
    let trained = init(&architecture.decoder, 7, DType::F32, Device::Cpu).unwrap();
    let load = |dir: &std::path::Path| -> Loaded<UNet2DConditionModel> {
        weights::load(&dir.join("decoder"), DType::F32, Device::Cpu).unwrap()
    };
    let written = load(dir.path());
    assert!(written.params.arena().bit_equal(trained.params.arena()));
    // The same through memory gives the same files, and half precision rounds.
    for (precision, dtype) in [
        (Precision::Full, DType::F32),
        (Precision::Bf16, DType::BF16),
        (Precision::F16, DType::F16),
    ] {
        let [streamed, whole] = ["streamed", "whole"].map(|name| dir.path().join(name));
        weights::save_initial::<UNet2DConditionModel>(
            &streamed,
            &architecture.decoder,
            7,
            precision,
        )
        .unwrap();
        weights::save(&whole, &trained.model, &trained.params, precision).unwrap();
        for file in ["config.json", "diffusion_pytorch_model.safetensors"] {
            let bytes = |dir: &std::path::Path| std::fs::read(dir.join(file)).unwrap();
            assert!(bytes(&streamed) == bytes(&whole), "{file} of {precision:?}");
        }
        let found = weights::describe(&Folder::from(&streamed))
            .unwrap()
            .unwrap();
        assert_eq!(found.dtypes, [dtype.to_string()]);
        assert_eq!((found.tensors, found.parameters), (176, 861_638));
        let rounded: Loaded<UNet2DConditionModel> =
            weights::load(&streamed, DType::F32, Device::Cpu).unwrap();
        let want = trained.params.arena().cast(dtype).unwrap();
        let want = want.cast(DType::F32).unwrap();
        assert!(rounded.params.arena().bit_equal(&want));
    }
}

#[test]
fn a_tokenizer_that_does_not_fit_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("model");
    let tokenizer = Tokenizer::from_merges(&[], 31).unwrap();
    let refused = Architecture::tiny().create(&place, &tokenizer, 0, Precision::Full, |_| {});
    let error = refused.unwrap_err().to_string();
    assert!(
        error.contains("31 tokens, this text encoder reads 32"),
        "{error}"
    );
    assert!(!place.exists());
}

/// Zhai et al. (2023), algorithm 1, from the logits one by one.
#[test]
fn the_loss_of_siglip_judges_every_pair_by_itself() {
    let config = CLIPConfig {
        logit_scale_init_value: SIGMOID_LOGIT_SCALE,
        logit_bias_init_value: Some(INITIAL_LOGIT_BIAS),
        ..clip_config()
    };
    let Loaded { model, params } = tiny::<CLIPModel>(&config, DType::F64);
    let t = Tape::inference(Some(&params));
    let pixels = constant(&t, "pixels", &[3, 8, 8, 3], DType::F64);
    let made = model.forward(&t, &clip_ids(), None, &pixels).unwrap();
    let bias = params.layout().find("logit_bias").unwrap();
    let bias = params.get(bias).unwrap().item().unwrap();
    let scale = params.layout().find("logit_scale").unwrap();
    let scale = params.get(scale).unwrap().item().unwrap().exp();
    let rows = |x: &Var| -> Vec<Vec<f64>> {
        let d = x.dims()[1];
        let values = x.tensor().to_f64_vec().unwrap();
        values.chunks(d).map(<[f64]>::to_vec).collect()
    };
    let (texts, images) = (rows(&made.text_embeds), rows(&made.image_embeds));
    let n = texts.len();
    let mut want = 0.0;
    for (i, text) in texts.iter().enumerate() {
        for (j, image) in images.iter().enumerate() {
            let cosine: f64 = text.iter().zip(image).map(|(a, b)| a * b).sum();
            let z = if i == j { 1.0 } else { -1.0 };
            want += (-z * (scale * cosine + bias)).exp().ln_1p() / n as f64;
        }
    }
    let loss = made.loss.tensor().item().unwrap();
    assert!((loss - want).abs() < 1e-12 * want, "{loss} {want}");
}

#[test]
fn outputs_have_the_shapes_that_the_configuration_says() {
    let decoder = tiny::<UNet2DConditionModel>(&decoder_config(), DType::F32);
    let t = Tape::inference(Some(&decoder.params));
    assert_eq!(
        decoder_output(&t, &decoder.model, 2, DType::F32)
            .unwrap()
            .dims(),
        [2, 4, 8, 6]
    );
    let upsampler = tiny::<UNet2DModel>(&upsampler_config(), DType::F32);
    let t = Tape::inference(Some(&upsampler.params));
    assert_eq!(
        unet_output(&t, &upsampler.model, 2, DType::F32)
            .unwrap()
            .dims(),
        [2, 6, 4, 3]
    );
    let prior = tiny::<PriorTransformer>(&prior_config(), DType::F32);
    let t = Tape::inference(Some(&prior.params));
    assert_eq!(
        prior_output(&t, &prior.model, 2, DType::F32)
            .unwrap()
            .dims(),
        [2, 10]
    );
}

#[test]
fn a_size_that_cannot_be_halved_is_refused_in_words() {
    let upsampler = tiny::<UNet2DModel>(&upsampler_config(), DType::F32);
    let t = Tape::inference(Some(&upsampler.params));
    let sample = t.constant(normal("x", &[1, 5, 4, 6], DType::F32));
    let step = t.constant(normal("t", &[1], DType::F32));
    let error = upsampler
        .model
        .forward(&t, &sample, &step, None)
        .unwrap_err();
    assert!(error.to_string().contains("multiples of 2"), "{error}");
}

/// Every parameter that is trained has a gradient that is not zero, except those for which it is zero by
/// construction: a key bias shifts all scores of a query alike.
fn every_parameter_learns(params: &Params, grads: &ParamGrads) {
    for (id, info) in params.layout().iter() {
        if info.decay == Decay::Frozen {
            continue;
        }
        assert!(grads.touched(id), "{} received no gradient", info.name);
        let invariant = ["to_k.bias", "k_proj.bias"]
            .iter()
            .any(|key| info.name.ends_with(key));
        let largest = grads
            .get(id)
            .unwrap()
            .to_f64_vec()
            .unwrap()
            .iter()
            .fold(0.0f64, |m, v| m.max(v.abs()));
        assert!(
            invariant || largest > 0.0,
            "{} has a gradient of zero",
            info.name
        );
    }
}

#[test]
fn every_parameter_receives_a_gradient() {
    let m = tiny::<UNet2DConditionModel>(&decoder_config(), DType::F64);
    let (_, grads) = step(&m.params, |t| {
        loss_of(t, &decoder_output(t, &m.model, 2, DType::F64)?)
    });
    every_parameter_learns(&m.params, &grads);
    for config in [upsampler_config(), attending_config()] {
        let m = tiny::<UNet2DModel>(&config, DType::F64);
        let (_, grads) = step(&m.params, |t| {
            loss_of(t, &unet_output(t, &m.model, 2, DType::F64)?)
        });
        every_parameter_learns(&m.params, &grads);
    }
    let m = tiny::<PriorTransformer>(&prior_config(), DType::F64);
    let (_, grads) = step(&m.params, |t| {
        loss_of(t, &prior_output(t, &m.model, 2, DType::F64)?)
    });
    every_parameter_learns(&m.params, &grads);
    let m = tiny::<UnCLIPTextProjModel>(&text_proj_config(), DType::F64);
    let (_, grads) = step(&m.params, |t| text_proj_loss(t, &m.model, DType::F64));
    every_parameter_learns(&m.params, &grads);
    let m = tiny::<CLIPModel>(&clip_config(), DType::F64);
    let (_, grads) = step(&m.params, |t| clip_loss(t, &m.model, DType::F64));
    every_parameter_learns(&m.params, &grads);
}

/// Reproducibility: recompute on and off is bit-equal, dropout on.
#[test]
fn recompute_changes_no_bit() {
    let run = |recompute: bool| {
        let m = tiny::<UNet2DConditionModel>(&decoder_config(), DType::F32);
        let model = m.model.with_recompute(recompute);
        step(&m.params, |t| {
            loss_of(t, &decoder_output(t, &model, 3, DType::F32)?)
        })
    };
    let ((loss, grads), (loss_again, grads_again)) = (run(false), run(true));
    assert_eq!(loss.to_bits(), loss_again.to_bits());
    for (id, info) in grads.layout().iter() {
        let equal = grads
            .get(id)
            .unwrap()
            .bit_equal(&grads_again.get(id).unwrap());
        assert!(equal, "the gradient of {} differs", info.name);
    }
}

/// A picture does not depend on what else is in its batch.
#[test]
fn an_image_does_not_depend_on_its_batch() {
    let m = tiny::<UNet2DModel>(&attending_config(), DType::F32);
    let one = {
        let t = Tape::inference(Some(&m.params));
        unet_output(&t, &m.model, 1, DType::F32)
            .unwrap()
            .tensor()
            .clone()
    };
    let t = Tape::inference(Some(&m.params));
    let three: Var = unet_output(&t, &m.model, 3, DType::F32).unwrap();
    assert!(three.tensor().narrow(0, 0, 1).unwrap().bit_equal(&one));
}

fn round_trip<M: Model<Config: PartialEq + std::fmt::Debug>>(config: &M::Config, dtype: DType) {
    let dir = tempfile::tempdir().unwrap();
    let saved = tiny::<M>(config, dtype);
    weights::save(dir.path(), &saved.model, &saved.params, Precision::Full).unwrap();
    let loaded: Loaded<M> = weights::load(dir.path(), dtype, Device::Cpu).unwrap();
    assert_eq!(saved.model.config(), loaded.model.config());
    assert!(saved.params.arena().bit_equal(loaded.params.arena()));
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "temporary files were left behind");

    weights::save(dir.path(), &saved.model, &saved.params, Precision::Bf16).unwrap();
    let rounded: Loaded<M> = weights::load(dir.path(), dtype, Device::Cpu).unwrap();
    let rounded_to = |dtype, x: &autograd::Tensor| x.cast(dtype).unwrap();
    let want = rounded_to(dtype, &rounded_to(DType::BF16, saved.params.arena()));
    assert!(rounded.params.arena().bit_equal(&want));
}

#[test]
fn saved_weights_load_with_the_same_bits() {
    for dtype in [DType::F32, DType::F64] {
        round_trip::<UNet2DConditionModel>(&decoder_config(), dtype);
        round_trip::<UNet2DModel>(&attending_config(), dtype);
        round_trip::<PriorTransformer>(&prior_config(), dtype);
        round_trip::<UnCLIPTextProjModel>(&text_proj_config(), dtype);
        round_trip::<CLIPModel>(&clip_config(), dtype);
    }
}

#[test]
fn files_hold_convolutions_as_pytorch_does() {
    let dir = tempfile::tempdir().unwrap();
    let m = tiny::<UNet2DModel>(&upsampler_config(), DType::F32);
    weights::save(dir.path(), &m.model, &m.params, Precision::Full).unwrap();
    let bytes = std::fs::read(dir.path().join("diffusion_pytorch_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let stored = file.tensor("conv_in.weight").unwrap();
    assert_eq!(stored.shape(), [8, 6, 3, 3]);
    let id = m.params.layout().find("conv_in.weight").unwrap();
    let memory = m.params.get(id).unwrap().to_vec::<f32>().unwrap(); // [8, 3, 3, 6]
    let element = |o: usize, i: usize, y: usize, x: usize| {
        let flat = ((o * 6 + i) * 3 + y) * 3 + x;
        f32::from_le_bytes(stored.data()[4 * flat..4 * flat + 4].try_into().unwrap())
    };
    for (o, i, y, x) in [(0, 0, 0, 1), (3, 5, 2, 0), (7, 1, 1, 2)] {
        assert_eq!(element(o, i, y, x), memory[((o * 3 + y) * 3 + x) * 6 + i]);
    }
}

#[test]
fn weights_that_do_not_fit_are_all_named_in_one_error() {
    let dir = tempfile::tempdir().unwrap();
    let m = tiny::<UnCLIPTextProjModel>(&text_proj_config(), DType::F32);
    weights::save(dir.path(), &m.model, &m.params, Precision::Full).unwrap();
    // Another model's weights under this model's names: one mis-shaped, one renamed.
    let path = dir.path().join("diffusion_pytorch_model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file.tensors();
    for (name, view) in &mut tensors {
        match name.as_str() {
            "embedding_proj.weight" => *name = "embedding_projection.weight".into(),
            "embedding_proj.bias" => {
                *view = safetensors::tensor::TensorView::new(view.dtype(), vec![3, 4], view.data())
                    .unwrap();
            }
            _ => {}
        }
    }
    let changed = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(&path, changed).unwrap();
    let error =
        weights::load::<UnCLIPTextProjModel>(dir.path(), DType::F32, Device::Cpu).unwrap_err();
    let Error::Mismatch {
        ref differences, ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(differences.len(), 3);
    let text = error.to_string();
    for part in [
        "embedding_proj.weight [12, 10] is missing",
        "embedding_proj.bias is [3, 4], it must be [12]",
        "embedding_projection.weight [12, 10] is unexpected",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn hostile_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let m = tiny::<UnCLIPTextProjModel>(&text_proj_config(), DType::F32);
    weights::save(dir.path(), &m.model, &m.params, Precision::Full).unwrap();
    let path = dir.path().join("diffusion_pytorch_model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let load = || {
        weights::load::<UnCLIPTextProjModel>(dir.path(), DType::F32, Device::Cpu)
            .unwrap_err()
            .to_string()
    };
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    for bytes in [&whole[..whole.len() - 1], &whole[..20], &[], &huge] {
        std::fs::write(&path, bytes).unwrap();
        assert!(
            load().contains("is not a valid safetensors file"),
            "{}",
            load()
        );
    }
    std::fs::remove_file(&path).unwrap();
    assert!(load().contains("cannot read"), "{}", load());
    std::fs::write(dir.path().join("diffusion_pytorch_model.bin"), "pickle").unwrap();
    assert!(load().contains("it is a pickle"), "{}", load());

    let config = dir.path().join("config.json");
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    for (text, says) in [
        ("{\"clip_embeddings_dim\": NaN}", "not valid JSON"),
        (deep.as_str(), "not valid JSON"),
        ("[]", "must hold a JSON object"),
        (
            "{\"_class_name\": \"UNet2DModel\"}",
            "describes a UNet2DModel",
        ),
        ("{\"time_embed_dim\": 1}", "cross_attention_dim"),
        (
            "{\"time_embed_dim\": 0, \"cross_attention_dim\": 8}",
            "time_embed_dim must be from 1",
        ),
        (
            "{\"time_embed_dim\": 18446744073709551615, \"cross_attention_dim\": 8}",
            "time_embed_dim must be from 1",
        ),
    ] {
        std::fs::write(&config, text).unwrap();
        assert!(load().contains(says), "{}", load());
    }
}

#[test]
fn options_that_are_not_followed_are_refused() {
    let mut config = decoder_config();
    config
        .extra
        .insert("only_cross_attention".into(), true.into());
    let error = declare::<UNet2DConditionModel>(&config)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "UNet2DConditionModel: only_cross_attention = true is not supported (only false)"
    );
    let config = UNet2DConfig {
        norm_num_groups: 5,
        ..upsampler_config()
    };
    let error = declare::<UNet2DModel>(&config).unwrap_err().to_string();
    assert!(
        error.contains("norm_num_groups (5) must divide block_out_channels (8)"),
        "{error}"
    );
}

#[test]
fn encoders_cut_from_clip_say_the_same() {
    let m = tiny::<CLIPModel>(&clip_config(), DType::F64);
    let text =
        weights::cut::<CLIPTextModelWithProjection>(&m.params, &clip_config().text()).unwrap();
    let vision =
        weights::cut::<CLIPVisionModelWithProjection>(&m.params, &clip_config().vision()).unwrap();
    let whole = Tape::inference(Some(&m.params));
    let want = m.model.text(&whole, &clip_ids(), None).unwrap().text_embeds;
    let t = Tape::inference(Some(&text.params));
    let got = text
        .model
        .forward(&t, &clip_ids(), None)
        .unwrap()
        .text_embeds;
    assert!(got.tensor().bit_equal(want.tensor()));
    let pixels = whole.constant(normal("pixels", &[3, 8, 8, 3], DType::F64));
    let want = m.model.vision(&whole, &pixels).unwrap().image_embeds;
    let t = Tape::inference(Some(&vision.params));
    assert!(
        vision
            .model
            .forward(&t, &pixels)
            .unwrap()
            .image_embeds
            .tensor()
            .bit_equal(want.tensor())
    );
}

#[test]
fn the_temperature_is_clamped_at_one_hundredth() {
    let mut m = tiny::<CLIPModel>(&clip_config(), DType::F32);
    let id: ParamId = m.params.layout().find("logit_scale").unwrap();
    for (before, after) in [(9.0, 100f32.ln()), (2.0, 2.0), (-1.0, 0.0)] {
        m.params
            .set(
                id,
                &autograd::Tensor::full([], before, DType::F32, Device::Cpu),
            )
            .unwrap();
        m.model.clamp_logit_scale(&mut m.params).unwrap();
        assert!((m.params.get(id).unwrap().item().unwrap() - f64::from(after)).abs() < 1e-6);
    }
}
