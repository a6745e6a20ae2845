//! Training on several processes, played by threads: the same bytes on 1, 2, 4 and 8 of them.

use salsa_engine::comm::{Comm, CommError, InProcess, Solo, in_process};
use salsa_engine::{
    AdamW, Batch, Device, ModelError, ModelSpec, Moment, OutputGradient, Query, Recompute, Trainable, tiny,
    with_threads,
};
use std::sync::Arc;

const UNITS: usize = 8;
const BLOCK: usize = 1 << 14;

/// A model of more than nine blocks of weights, so that slices have unequal lengths.
fn spec() -> ModelSpec {
    ModelSpec { vocab_size: 613, hidden_size: 64, intermediate_size: 128, head_dim: 16, ..tiny() }
}

fn model(comm: Arc<dyn Comm>) -> Trainable {
    let mut model = Trainable::new(spec(), spec().init(5), Device::default(), Recompute::KeepActivations).unwrap();
    model.share(comm, UNITS).unwrap();
    model
}

/// A pass of one or two sequences, and the derivatives of some loss; unit 3 of each step is empty.
fn pass(model: &mut Trainable, step: usize, unit: usize) {
    let (mut batch, mut query) = (Batch::new(), Query::default());
    for sequence in 0..if unit == 3 { 0 } else { 1 + unit % 2 } {
        let at = |i: usize| ((step * 131 + unit * 37 + sequence * 17 + i * i) % 613) as u32;
        let tokens: Vec<u32> = (0..5 + unit).map(at).collect();
        let rows = batch.push(&tokens);
        query.push_logprobs(rows, &tokens, 1);
    }
    if batch.rows() > 0 {
        let (output, tape) = model.forward_train(&batch, &query);
        let d: Vec<f32> = output.logprobs.iter().map(|logprob| logprob * 0.3).collect();
        model.backward(tape, &OutputGradient { d_logprobs: &d, d_values: &[] });
    }
}

fn step(model: &mut Trainable, comm: &dyn Comm, step: usize) -> u64 {
    let own = UNITS / comm.size();
    for unit in comm.rank() * own..(comm.rank() + 1) * own {
        pass(model, step, unit);
        model.finish_unit();
    }
    assert!(model.gradient_norm().unwrap() > 1.0, "it is clipped");
    model.adamw_step(&AdamW { weight_decay: 0.1, ..AdamW::default() }, 1e-2).unwrap().to_bits()
}

/// What a training leaves: the norms, and on the first process the moments.
#[derive(Clone, Debug, PartialEq)]
struct Left {
    norms: Vec<u64>,
    weights: Vec<u32>,
    moments: [Vec<u32>; 2],
}

fn moment(model: &Trainable, moment: Moment) -> Vec<f32> {
    let mut all = Vec::new();
    model.each_moment::<ModelError>(moment, |piece| Ok(all.extend_from_slice(piece))).unwrap();
    all
}

fn left(model: &Trainable, norms: Vec<u64>) -> Left {
    let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect();
    let moments = [Moment::First, Moment::Second].map(|of| bits(&moment(model, of)));
    Left { norms, weights: bits(&model.weights()), moments }
}

fn on_all<R: Send>(processes: usize, f: impl Fn(Arc<InProcess>) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let play = |comm| scope.spawn(|| with_threads(1, || f(Arc::new(comm))));
        let threads: Vec<_> = in_process(processes).into_iter().map(play).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn trained(comm: Arc<dyn Comm>, steps: usize) -> Left {
    let mut model = model(comm.clone());
    let norms = (0..steps).map(|at| step(&mut model, &*comm, at)).collect();
    left(&model, norms)
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_processes() {
    let alone = trained(Arc::new(Solo), 3);
    assert_eq!(alone.weights.len(), spec().parameters());
    assert_eq!(alone.moments[1].len(), spec().parameters());
    for processes in [1, 2, 4, 8] {
        for (rank, found) in on_all(processes, |comm| trained(comm, 3)).into_iter().enumerate() {
            assert_eq!((&found.norms, &found.weights), (&alone.norms, &alone.weights), "{rank} of {processes}");
            if rank == 0 {
                assert_eq!(found.moments, alone.moments, "{processes}");
            }
        }
    }
}

#[test]
fn a_step_sends_its_slices_once_there_and_once_back() {
    let len = spec().parameters();
    let blocks = len.div_ceil(BLOCK);
    for processes in [2, 4, 8] {
        let sent = on_all(processes, |comm| {
            let mut model = model(comm.clone());
            step(&mut model, &*comm, 0);
            let kept = model.optimizer_state().m.len();
            (comm.sent(), kept)
        });
        for (rank, (sent, kept)) in sent.into_iter().enumerate() {
            let own_blocks = blocks * rank / processes..blocks * (rank + 1) / processes;
            let own = (own_blocks.end * BLOCK).min(len) - own_blocks.start * BLOCK;
            let others = processes - 1;
            let expected = 4 * (len - own) + 4 * own * others + 8 * own_blocks.len() * others;
            assert_eq!((sent, kept), (expected as u64, own), "process {rank} of {processes}");
        }
    }
}

#[test]
fn a_training_goes_on_with_another_number_of_processes() {
    let whole = trained(Arc::new(Solo), 3);
    let saved = on_all(4, |comm| {
        let mut model = model(comm.clone());
        for at in 0..2 {
            step(&mut model, &*comm, at);
        }
        let [m, v] = [Moment::First, Moment::Second].map(|of| moment(&model, of));
        (model.weights().to_vec(), m, v)
    });
    let (weights, m, v) = &saved[0];
    let resumed = on_all(2, |comm| {
        let mut model = model(comm.clone());
        let [m, v] = [m, v].map(|all| all[model.kept_moments()].to_vec());
        model.restore(weights.clone(), 2, m, v).unwrap();
        let norm = step(&mut model, &*comm, 2);
        left(&model, vec![norm])
    });
    assert_eq!((&resumed[0].weights, &resumed[0].moments), (&whole.weights, &whole.moments));
    assert_eq!(resumed[0].norms[0], whole.norms[2]);
}

#[test]
fn one_unit_alone_is_the_step_that_it_always_was() {
    let fresh = || Trainable::new(spec(), spec().init(5), Device::default(), Recompute::KeepActivations).unwrap();
    let (mut plain, mut shared) = (fresh(), fresh());
    shared.share(Arc::new(Solo), 1).unwrap();
    for model in [&mut plain, &mut shared] {
        pass(model, 0, 1);
        model.finish_unit();
        model.adamw_step(&AdamW::default(), 1e-2).unwrap();
    }
    assert_eq!((plain.weights(), shared.units()), (shared.weights(), 1));
}

#[test]
fn units_that_cannot_be_dealt_are_refused() {
    let refused = |processes: usize, units: usize| {
        let comm = Arc::new(in_process(processes).remove(0));
        let mut model = Trainable::new(tiny(), tiny().init(1), Device::default(), Recompute::KeepActivations).unwrap();
        model.share(comm, units).unwrap_err().to_string()
    };
    for (processes, units) in [(3, 4), (4, 2), (3, 3), (1, 6)] {
        let message = refused(processes, units);
        assert!(message.contains(&format!("{units} gradient units cannot be dealt to {processes}")), "{message}");
    }
}

/// A process that no longer reaches the others.
#[derive(Debug)]
struct Cut;

impl Cut {
    fn error() -> CommError {
        CommError { rank: 0, size: 2, operation: "exchange".into(), reason: "the other one is gone".into() }
    }
}

impl Comm for Cut {
    fn rank(&self) -> usize {
        0
    }
    fn size(&self) -> usize {
        2
    }
    fn local_rank(&self) -> usize {
        0
    }
    fn local_size(&self) -> usize {
        2
    }
    fn barrier(&self) -> Result<(), CommError> {
        Err(Cut::error())
    }
    fn broadcast(&self, _: usize, _: &mut [u8]) -> Result<(), CommError> {
        Err(Cut::error())
    }
    fn gather(&self, _: &mut [u8], _: &[std::ops::Range<usize>]) -> Result<(), CommError> {
        Err(Cut::error())
    }
    fn exchange(&self, _: &[&[u8]], _: &mut [&mut [u8]]) -> Result<(), CommError> {
        Err(Cut::error())
    }
    fn sent(&self) -> u64 {
        0
    }
    fn abort(&self, code: i32) -> ! {
        panic!("{code}")
    }
}

#[test]
fn a_step_without_the_others_fails_by_name_and_moves_nothing() {
    let mut model = model(Arc::new(Cut));
    let before = model.weights().to_vec();
    for unit in 0..UNITS / 2 {
        pass(&mut model, 0, unit);
        model.finish_unit();
    }
    let error = model.adamw_step(&AdamW::default(), 1e-2).unwrap_err();
    assert_eq!(error.to_string(), "process 0 of 2: exchange: the other one is gone");
    assert_eq!(model.weights()[..], before[..]);
}
