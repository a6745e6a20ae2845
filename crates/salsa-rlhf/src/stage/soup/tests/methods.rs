//! The methods based on angles, and the plain copy, on whole checkpoints.
use salsa_algo::soup::{KarcherSearch, NuSlerpStream, Origin, StockStream, Vectors, karcher};

use super::*;

/// The name and shape of the tensor, base, first and second ingredient, result.
type Apply<'a> = dyn Fn(&str, &[usize], [&[f32]; 3], &mut [f32]) + 'a;

fn matrix(shape: &[usize], rows: fn(usize) -> Vectors) -> Vectors {
    if shape.len() == 2 { rows(shape[1]) } else { Vectors::Whole }
}

#[test]
fn angles_are_those_of_whole_tensors_rows_and_columns() {
    // The embedding has more than two pieces, split within its rows.
    let (kitchen, spec) = (Kitchen::new(), big());
    let [base, a, b] = ["base", "a", "bb"].map(|name| kitchen.random(name, &spec, F32));
    let [w0, wa, wb] = [&base, &a, &b].map(|dir| read(dir));
    let by_tensor = |apply: &Apply<'_>| -> Vec<f32> {
        let mut out = vec![0.0; w0.len()];
        for view in spec.tensors() {
            let parts = [&w0, &wa, &wb].map(|w| &w[view.range.clone()]);
            apply(&view.name, &view.shape, parts, &mut out[view.range]);
        }
        out
    };
    let config = |method| SoupConfig { method, ..kitchen.config(&[&a, &b]) };
    let with_base = |config: SoupConfig| SoupConfig { base_model: Some(base.clone().into()), ..config };

    for filter_wise in [false, true] {
        let stock = SoupConfig { filter_wise, ..with_base(config(Method::ModelStock)) };
        let expected = by_tensor(&|_, shape, [base, a, b], out| {
            let vectors = if filter_wise { matrix(shape, Vectors::Rows) } else { Vectors::Whole };
            let mut stream = StockStream::new(vectors, 2);
            stream.look(base, &[a, b]);
            stream.looked();
            stream.apply(base, &[a, b], out);
        });
        assert!(kitchen.soup(&stock) == expected, "filter_wise {filter_wise}");
    }
    for (nuslerp_flatten, nuslerp_row_wise) in [(true, false), (false, false), (false, true)] {
        for origin in [Origin::Zero, Origin::Base] {
            let arcs = SoupConfig {
                nuslerp_flatten,
                nuslerp_row_wise,
                weights: numbers(&[1.0, 3.0]),
                ..config(Method::Nuslerp)
            };
            let arcs = if origin == Origin::Base { with_base(arcs) } else { arcs };
            let expected = by_tensor(&|_, shape, [base, a, b], out| {
                let vectors = match (nuslerp_flatten, nuslerp_row_wise) {
                    (true, _) => Vectors::Whole,
                    (false, false) => matrix(shape, Vectors::Rows),
                    (false, true) => matrix(shape, Vectors::Columns),
                };
                let mut stream = NuSlerpStream::new(0.75, origin, vectors);
                stream.look(base, a, b);
                stream.looked();
                stream.apply(base, a, b, out);
            });
            assert!(kitchen.soup(&arcs) == expected, "{nuslerp_flatten} {nuslerp_row_wise} {origin:?}");
        }
    }
    let search = KarcherSearch { max_iter: 3, tol: 1e-4 };
    let sphere = SoupConfig { max_iter: 3, tol: 1e-4, ..config(Method::Karcher) };
    assert!(kitchen.soup(&sphere) == by_tensor(&|_, _, [_, a, b], out| karcher(&[a, b], search, out)));

    let setting = |value: Value| -> Setting { serde_json::from_value(value).unwrap() };
    let scale = setting(json!([{"filter": "mlp", "value": 0.5}, {"filter": "o_proj", "value": 0}]));
    let copy = SoupConfig { method: Method::Passthrough, scale, ..kitchen.config(&[&a]) };
    let expected = by_tensor(&|name, _, [_, a, _], out| {
        let scale = if name.contains("mlp") { 0.5 } else { f32::from(u8::from(!name.contains("o_proj"))) };
        out.iter_mut().zip(a).for_each(|(out, a)| *out = scale * a);
    });
    assert!(kitchen.soup(&copy) == expected);
}

#[test]
fn a_copy_is_a_copy_in_every_type() {
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let kitchen = Kitchen::new();
        let a = kitchen.random("a", &small(), Style { dtype, ..F32 });
        let copy = SoupConfig { method: Method::Passthrough, ..kitchen.config(&[&a]) };
        write_new_directory(&copy, &StageContext::quiet()).unwrap();
        let weights = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
        assert!(weights(&copy.output_dir) == weights(&a), "{dtype}");
    }
}

#[test]
fn a_task_vector_of_zeros_counts_less_and_density_zero_leaves_a_model_out() {
    let (kitchen, spec) = (Kitchen::new(), small());
    let [base, a, b] = ["base", "a", "bb"].map(|name| kitchen.random(name, &spec, F32));
    let ties = |densities: &[f64], models: &[&PathBuf]| SoupConfig {
        method: Method::Ties,
        base_model: Some(base.clone().into()),
        densities: numbers(densities),
        ..kitchen.config(models)
    };
    let without = kitchen.soup(&SoupConfig { weights: numbers(&[1.0]), ..ties(&[0.5], &[&b]) });
    assert!(kitchen.soup(&SoupConfig { weights: numbers(&[1.0, 1.0]), ..ties(&[0.0, 0.5], &[&a, &b]) }) == without);
    let error = kitchen.refused(&ties(&[0.0, 0.0], &[&a, &b]));
    assert!(error.starts_with("density 0 keeps nothing of any model"), "{error}");
}

#[test]
fn what_a_method_does_not_use_is_refused() {
    let refused = |config: SoupConfig| config.check().unwrap_err().to_string();
    let of = |method, count: usize| SoupConfig {
        method,
        models: (0..count).map(|i| i.to_string().into()).collect(),
        base_model: Some("base".into()),
        ..SoupConfig::default()
    };
    for (method, count, message) in [
        (Method::ModelStock, 1, "method model_stock takes 2 models or more, besides the base, not 1"),
        (Method::Nuslerp, 3, "method nuslerp takes exactly 2 models, not 3"),
        (Method::Passthrough, 2, "method passthrough takes exactly 1 model, not 2"),
    ] {
        assert_eq!(refused(of(method, count)), message);
    }
    let stock = SoupConfig { base_model: None, ..of(Method::ModelStock, 2) };
    assert!(refused(stock).contains("give it with base_model"));
    for method in [Method::ModelStock, Method::Karcher] {
        let weighted = SoupConfig { weights: numbers(&[1.0, 2.0]), ..of(method, 2) };
        assert!(refused(weighted).ends_with("does not use weights; angles decide"), "{method:?}");
    }
    assert!(refused(SoupConfig { filter_wise: true, ..of(Method::Linear, 2) }).contains("does not use filter_wise"));
    assert!(refused(SoupConfig { nuslerp_flatten: false, ..of(Method::Slerp, 2) }).contains("nuslerp_flatten"));
    assert!(refused(SoupConfig { nuslerp_row_wise: true, ..of(Method::Nuslerp, 2) }).contains("has no effect while"));
    assert!(refused(SoupConfig { max_iter: 5, ..of(Method::Linear, 2) }).contains("does not use max_iter"));
    assert!(refused(SoupConfig { tol: 0.0, ..of(Method::Karcher, 2) }).starts_with("tol is 0"));
    assert!(refused(SoupConfig { scale: Setting::number(2.0), ..of(Method::Karcher, 2) }).contains("scale"));
}
