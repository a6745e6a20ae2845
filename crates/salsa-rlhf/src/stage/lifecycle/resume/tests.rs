use salsa_engine::comm::Solo;
use serde_json::json;

use super::*;

fn checkpoints(dir: &Path) -> Checkpoints {
    Checkpoints::new(dir, json!({"stage": "sft", "config": {"learning_rate": 0.001}}), Arc::new(Solo))
}

fn save(checkpoints: &Checkpoints, step: u64) {
    let values = [step as f32, -0.0, f32::MIN_POSITIVE / 4.0];
    checkpoints.save(&Snapshot::new(step, json!({"sum": 0.1 + 0.2})).with_buffer("x", &values)).unwrap();
}

#[test]
fn the_newest_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(dir.path());
    assert!(checkpoints.newest().unwrap().is_none());
    for step in [2, 9, 10] {
        save(&checkpoints, step);
    }
    let restored = checkpoints.newest().unwrap().unwrap();
    assert_eq!(restored.step, 10);
    assert_eq!(restored.state["sum"].as_f64().unwrap().to_bits(), (0.1f64 + 0.2).to_bits());
    let bits: Vec<u32> = restored.buffer("x").unwrap().into_iter().map(f32::to_bits).collect();
    assert_eq!(bits, [10f32.to_bits(), 0x8000_0000, f32::MIN_POSITIVE.to_bits() / 4]);
    assert!(restored.buffer("y").unwrap_err().to_string().contains("no buffer"));
    let kept: Vec<u64> = checkpoints.listed().unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(kept, [10, 9], "only the last two stay");
}

/// The steps of the existing checkpoints.
fn steps(checkpoints: &Checkpoints) -> Vec<u64> {
    checkpoints.listed().unwrap().into_iter().map(|(step, _)| step).collect()
}

#[test]
fn damaged_checkpoints_are_passed_over_and_count_for_nothing() {
    type Damage = fn(&mut Vec<u8>);
    let cut: Damage = |bytes| bytes.truncate(bytes.len() - 1);
    let flip: Damage = |bytes| *bytes.last_mut().unwrap() ^= 0x40;
    let nan: Damage = |bytes| {
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    };
    // Another digit of a number in the stage's state.
    let digit: Damage = |bytes| {
        let at = bytes.windows(3).position(|three| three == b"0.3").unwrap();
        bytes[at + 2] = b'4';
    };
    let no_digest: Damage = |bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap().replace("\"blake3\"", "\"blake4\"");
        *bytes = text.into_bytes();
    };
    for (file, damage) in [(BUFFERS, cut), (BUFFERS, flip), (BUFFERS, nan), (STATE, digit), (STATE, no_digest)] {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints(dir.path());
        for step in [1, 2, 3] {
            save(&checkpoints, step);
        }
        fs::create_dir(dir.path().join("checkpoints/step-7")).unwrap();
        fs::create_dir(dir.path().join("checkpoints/step-8.tmp")).unwrap();
        let path = dir.path().join("checkpoints/step-3").join(file);
        let mut bytes = fs::read(&path).unwrap();
        assert_eq!(checkpoints.newest().unwrap().unwrap().step, 3);
        damage(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(checkpoints.newest().unwrap().unwrap().step, 2, "{file}");
        assert_eq!(steps(&checkpoints), [7, 3, 2], "nothing is lost before there is something better");
        save(&checkpoints, 3);
        assert_eq!(steps(&checkpoints), [3, 2]);
        assert_eq!(checkpoints.newest().unwrap().unwrap().step, 3);
    }
}

#[test]
fn a_number_that_is_not_finite_never_reaches_a_checkpoint() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints(dir.path());
        assert_eq!(checkpoints.kept(), "no checkpoint has been saved");
        save(&checkpoints, 1);
        let mut values = vec![1.0; CHUNK + 3];
        values[CHUNK + 1] = bad;
        let snapshot = Snapshot::new(2, Value::Null).with_buffer("x", &[0.0][..]).with_buffer("model.m", &values);
        let refused = format!("{:#}", checkpoints.save(&snapshot).unwrap_err());
        assert!(refused.contains("model.m holds a number that is not finite after step 2"), "{refused}");
        assert_eq!(steps(&checkpoints), [1]);
        assert!(refused.contains("checkpoints/step-1, is of step 1"), "{refused}");
    }
}

#[test]
fn another_configuration_is_refused_with_the_key() {
    let dir = tempfile::tempdir().unwrap();
    save(&checkpoints(dir.path()), 1);
    let other =
        Checkpoints::new(dir.path(), json!({"stage": "sft", "config": {"learning_rate": 0.002}}), Arc::new(Solo));
    let message = other.newest().err().unwrap().to_string();
    assert!(message.contains("config.learning_rate was 0.001 and is now 0.002"), "{message}");
}

#[test]
fn a_checkpoint_from_before_a_key_existed_goes_on_where_the_key_is_at_its_default() {
    let dir = tempfile::tempdir().unwrap();
    save(&checkpoints(dir.path()), 1);
    let now = json!({"stage": "sft", "config": {"learning_rate": 0.001, "packing": false}});
    let at = |place: &str| Fingerprint { at_default: [place.to_owned()].into(), ..now.clone().into() };
    assert!(Checkpoints::new(dir.path(), at("config.packing"), Arc::new(Solo)).newest().unwrap().is_some());
    let message = Checkpoints::new(dir.path(), now.clone(), Arc::new(Solo)).newest().err().unwrap().to_string();
    assert!(message.contains("config.packing was null and is now false"), "{message}");
    let message =
        Checkpoints::new(dir.path(), json!({"stage": "sft"}), Arc::new(Solo)).newest().err().unwrap().to_string();
    assert!(message.contains("config was"), "{message}");
}
