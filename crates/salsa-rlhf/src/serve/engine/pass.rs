//! Forward passes over whole sequences, for those that ask for scores or log-probs.
use salsa_engine::{Batch, Model, Query, Ranking};

use super::{Asked, Pass, Passed, Reading, command::Place, finite};

/// A request and how far it is.
pub(super) struct Job {
    model: usize,
    sequences: Vec<Vec<u32>>,
    done: usize,
    so_far: Passed,
    asked: Asked,
    answer: Option<tokio::sync::oneshot::Sender<Reading>>,
    places: Vec<Place>,
}

/// Whether there is more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// There is.
    More,
    /// The answer is sent, or nobody waits for it.
    Done,
}

impl Job {
    /// None of it is done.
    pub(super) fn new(pass: Pass) -> Job {
        let Pass { model, sequences, asked, answer, places } = pass;
        let so_far = match asked {
            Asked::Scores => Passed::Scores(Vec::new()),
            Asked::Logprobs => Passed::Logprobs(Vec::new()),
            Asked::Rankings(_) => Passed::Rankings(Vec::new()),
        };
        Job { model, sequences, done: 0, so_far, asked, answer: Some(answer), places }
    }

    /// One forward pass of at most `budget` tokens (a longer sequence makes one alone).
    pub(super) fn step(&mut self, models: &[Model], budget: usize) -> Progress {
        self.places.clear();
        let Some(answer) = self.answer.take_if(|answer| !answer.is_closed()) else { return Progress::Done };
        let rest = &self.sequences[self.done..];
        let (mut count, mut tokens) = (0, 0);
        while count < rest.len() && (count == 0 || tokens + rest[count].len() <= budget) {
            tokens += rest[count].len();
            count += 1;
        }
        if let Err(message) = read(&models[self.model], &rest[..count], self.asked, &mut self.so_far) {
            // Whether anybody still waits is not the engine's matter.
            let _ = answer.send(Err(message));
            return Progress::Done;
        }
        self.done += count;
        if self.done < self.sequences.len() {
            self.answer = Some(answer);
            return Progress::More;
        }
        let _ = answer.send(Ok(std::mem::replace(&mut self.so_far, Passed::Scores(Vec::new()))));
        Progress::Done
    }
}

/// Reads sequences together and adds what was asked of each.
fn read(model: &Model, sequences: &[Vec<u32>], asked: Asked, so_far: &mut Passed) -> Result<(), std::sync::Arc<str>> {
    let (mut batch, mut query) = (Batch::new(), Query::default());
    for tokens in sequences {
        let rows = batch.push(tokens);
        match asked {
            Asked::Scores => query.value_rows.push(rows.end as u32 - 1),
            Asked::Logprobs | Asked::Rankings(_) => query.push_logprobs(rows, tokens, 1),
        }
    }
    match (asked, so_far) {
        (Asked::Scores, Passed::Scores(scores)) => {
            let values = model.forward(&batch, &query).values;
            finite(&values)?;
            scores.extend(values);
        }
        (Asked::Logprobs, Passed::Logprobs(all)) => {
            let values = model.forward(&batch, &query).logprobs;
            finite(&values)?;
            all.extend(apart(values, sequences));
        }
        (Asked::Rankings(count), Passed::Rankings(all)) => {
            let ranked = model.rank(&batch, &query, count);
            let told = |ranking: &'_ Ranking| ranking.logprob;
            finite(&ranked.iter().map(told).collect::<Vec<f32>>())?;
            all.extend(apart(ranked, sequences));
        }
        _ => unreachable!("a job keeps what it asks for"),
    }
    Ok(())
}

/// What was told of all tokens after the first, sequence by sequence.
fn apart<T>(values: Vec<T>, sequences: &[Vec<u32>]) -> Vec<Vec<T>> {
    let mut values = values.into_iter();
    sequences.iter().map(|tokens| values.by_ref().take(tokens.len() - 1).collect()).collect()
}
