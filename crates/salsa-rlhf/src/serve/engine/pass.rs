//! Forward passes over whole sequences, for scores or log-probs.
use salsa_engine::{Batch, Model, Query, Ranking};

use super::{Asked, Pass, Passed, Reading, command::Place, finite};

/// A request and its progress.
pub(super) struct Job {
    model: usize,
    sequences: Vec<Vec<u32>>,
    done: usize,
    so_far: Passed,
    asked: Asked,
    answer: Option<tokio::sync::oneshot::Sender<Reading>>,
    places: Vec<Place>,
}

/// Whether a job is unfinished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// There are sequences left.
    More,
    /// The result is sent, or its receiver is closed.
    Done,
}

impl Job {
    /// A new job.
    pub(super) fn new(pass: Pass) -> Job {
        let Pass { model, sequences, asked, answer, places } = pass;
        let so_far = match asked {
            Asked::Scores => Passed::Scores(Vec::new()),
            Asked::Logprobs => Passed::Logprobs(Vec::new()),
            Asked::Rankings(_) => Passed::Rankings(Vec::new()),
        };
        Job { model, sequences, done: 0, so_far, asked, answer: Some(answer), places }
    }

    /// Runs one forward pass of at most `budget` tokens (or of one longer sequence).
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
            // A closed receiver is no error of the engine.
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

/// Runs one forward pass over sequences and appends the requested output.
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

/// Splits values of all tokens after the first by sequence.
fn apart<T>(values: Vec<T>, sequences: &[Vec<u32>]) -> Vec<Vec<T>> {
    let mut values = values.into_iter();
    sequences.iter().map(|tokens| values.by_ref().take(tokens.len() - 1).collect()).collect()
}
