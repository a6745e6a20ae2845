//! What the processes of a run agree on, and how work is dealt to them.
//!
//! All processes go through a stage together and compute the same numbers in the same order; what is dealt out is
//! gathered in the order of the whole before it is added. The first process alone writes and prints. An error of one
//! process is not sent to the others: whoever runs the stage ends them all.
use std::{fmt::Display, ops::Range};

use anyhow::{Context, anyhow, ensure};
use salsa_engine::{
    Finish, Model, Prompt, Response, Sampling, Trainable,
    comm::{Comm, CommError},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Whether any process says so.
///
/// # Errors
/// If the processes cannot exchange bytes.
pub(crate) fn any(ranks: &dyn Comm, mine: bool) -> Result<bool, CommError> {
    Ok(ranks.gather_all(&[u8::from(mine)])?.concat().contains(&1))
}

/// The result of `work`, which the first process alone does.
///
/// # Errors
/// If it fails: that error, of which other processes have the text.
pub(crate) fn from_first<T: Serialize + DeserializeOwned>(
    ranks: &dyn Comm,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    if ranks.size() == 1 {
        return work();
    }
    if !ranks.is_first() {
        ranks.wait_for(0)?;
        let said = ranks.broadcast_all(0, Vec::new())?;
        let said: Result<T, String> = serde_json::from_slice(&said).context("the result of the first process")?;
        return said.map_err(|error| anyhow!("the first process stopped: {error}"));
    }
    let result = work();
    ranks.wait_for(0)?;
    let said = serde_json::to_vec(&result.as_ref().map_err(|error| format!("{error:#}"))).context("JSON")?;
    ranks.broadcast_all(0, said)?;
    result
}

/// The numbers of all processes, in the order of processes.
///
/// # Errors
/// If the processes cannot exchange bytes.
pub(crate) fn concat(ranks: &dyn Comm, own: Vec<f64>) -> Result<Vec<f64>, CommError> {
    if ranks.size() == 1 {
        return Ok(own);
    }
    let bytes: Vec<u8> = own.iter().flat_map(|number| number.to_le_bytes()).collect();
    let all = ranks.gather_all(&bytes)?.concat();
    Ok(all.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
}

/// The values of all processes, in the order of processes. Numbers must be finite: they travel as JSON.
///
/// # Errors
/// If the processes cannot exchange bytes.
pub(crate) fn concat_values<T: Serialize + DeserializeOwned>(ranks: &dyn Comm, own: Vec<T>) -> anyhow::Result<Vec<T>> {
    if ranks.size() == 1 {
        return Ok(own);
    }
    let mut all = Vec::new();
    for bytes in ranks.gather_all(&serde_json::to_vec(&own).context("JSON")?)? {
        all.append(&mut serde_json::from_slice(&bytes).context("the values of another process")?);
    }
    Ok(all)
}

/// Part `part` of `parts` of a list, by the number of items.
pub(crate) fn part<T>(items: &[T], part: usize, parts: usize) -> &[T] {
    &items[items.len() * part / parts..items.len() * (part + 1) / parts]
}

/// The parts of a list of these lengths, cut where each has its share of the sum.
pub(crate) fn parts_by_length(lengths: &[usize], parts: usize) -> Vec<Range<usize>> {
    let total: usize = lengths.iter().sum();
    let (mut before, mut ends) = (0, vec![0; parts]);
    for (index, &length) in lengths.iter().enumerate() {
        // An item belongs where its middle is.
        let part = ((2 * before + length) * parts / (2 * total).max(1)).min(parts - 1);
        ends[part] = index + 1;
        before += length;
    }
    let mut start = 0;
    let range = |end: usize| {
        let range = start..end.max(start);
        start = range.end;
        range
    };
    ends.into_iter().map(range).collect()
}

/// The parts of a step's examples that this process computes, one for each of its gradient units.
pub(crate) fn own_units<'e, T>(examples: &'e [T], model: &Trainable) -> impl Iterator<Item = &'e [T]> + use<'e, T> {
    let units = model.units();
    model.own_units().map(move |unit| part(examples, unit, units))
}

/// The number of gradient units of a step: that of the checkpoint a run resumes from, else the key's, else the number
/// of processes.
///
/// # Errors
/// If the processes cannot share them.
pub(crate) fn gradient_units(key: Option<usize>, saved: Option<usize>, ranks: &dyn Comm) -> anyhow::Result<usize> {
    let (units, processes) = (saved.or(key).unwrap_or(ranks.size()), ranks.size());
    let whose: &dyn Display = if saved.is_some() { &"the checkpoint has" } else { &"there are" };
    ensure!(
        units.is_power_of_two() && units.is_multiple_of(processes),
        "{whose} {units} gradient units a step, and {processes} processes cannot share them equally; take a power of two \
         of processes, at most as many as units{}",
        if saved.is_some() { "" } else { ", or say gradient_units" }
    );
    Ok(units)
}

/// Adds the gradient units of a training to its results: if the key is not set, nothing else in `stage.json` tells them.
pub(crate) fn record_units(results: &mut Value, units: usize) {
    if units > 1 {
        results["gradient_units"] = units.into();
    }
}

/// The responses of `model` to the prompts, in their order. Prompts of one id stay together: those with long ones are
/// dealt first, one after the other. `progress` gets the number of responses so far, here.
///
/// # Errors
/// If the processes cannot exchange bytes.
pub(crate) fn generate(
    model: &Model,
    prompts: &[Prompt],
    sampling: &Sampling,
    ranks: &dyn Comm,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Response>, CommError> {
    if ranks.size() == 1 {
        return Ok(model.generate(prompts, sampling, progress));
    }
    let dealt = |rank: usize| -> Vec<usize> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (index, prompt) in prompts.iter().enumerate() {
            match groups.last_mut() {
                Some(group) if prompts[group[0]].id == prompt.id => group.push(index),
                _ => groups.push(vec![index]),
            }
        }
        groups.sort_by_key(|group| std::cmp::Reverse(prompts[group[0]].tokens.len()));
        groups.into_iter().skip(rank).step_by(ranks.size()).flatten().collect()
    };
    let own: Vec<Prompt> = dealt(ranks.rank()).into_iter().map(|index| prompts[index].clone()).collect();
    let own = model.generate(&own, sampling, progress);
    let mut responses: Vec<Option<Response>> = vec![None; prompts.len()];
    for (rank, bytes) in ranks.gather_all(&to_bytes(&own))?.into_iter().enumerate() {
        for (index, response) in dealt(rank).into_iter().zip(from_bytes(&bytes)) {
            responses[index] = Some(response);
        }
    }
    Ok(responses.into_iter().map(|response| response.expect("every prompt is dealt once")).collect())
}

/// For each response its length, its end, its tokens and the bits of their log-probs.
fn to_bytes(responses: &[Response]) -> Vec<u8> {
    let mut words: Vec<u32> = Vec::new();
    for Response { tokens, logprobs, finish } in responses {
        words.push(tokens.len() as u32);
        words.push(u32::from(*finish == Finish::Stop));
        words.extend(tokens);
        words.extend(logprobs.iter().map(|logprob| logprob.to_bits()));
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The responses of [`to_bytes`].
fn from_bytes(bytes: &[u8]) -> Vec<Response> {
    let words: Vec<u32> = bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    let (mut rest, mut responses) = (&words[..], Vec::new());
    while let [length, finish, more @ ..] = rest {
        let (tokens, more) = more.split_at(*length as usize);
        let (logprobs, more) = more.split_at(*length as usize);
        responses.push(Response {
            tokens: tokens.to_vec(),
            logprobs: logprobs.iter().map(|&bits| f32::from_bits(bits)).collect(),
            finish: if *finish == 1 { Finish::Stop } else { Finish::Length },
        });
        rest = more;
    }
    responses
}

#[cfg(test)]
mod tests {
    use salsa_engine::comm::{Solo, in_process};

    use super::*;

    fn on_all<R: Send>(processes: usize, f: impl Fn(&dyn Comm) -> R + Sync) -> Vec<R> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = in_process(processes).into_iter().map(|comm| scope.spawn(|| f(&{ comm }))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn parts_are_whole_and_in_order() {
        for lengths in [vec![], vec![5], vec![1, 1, 1, 1], vec![9, 1, 1, 1, 1, 1], vec![0, 0, 3], vec![2; 13]] {
            for parts in [1, 2, 4, 8] {
                let cut = parts_by_length(&lengths, parts);
                assert_eq!(cut.len(), parts);
                let joined: Vec<usize> = cut.iter().cloned().flatten().collect();
                assert_eq!(joined, (0..lengths.len()).collect::<Vec<_>>(), "{lengths:?} in {parts}: {cut:?}");
            }
        }
        assert_eq!(parts_by_length(&[9, 1, 1, 1, 1, 1, 4], 2), [0..1, 1..7]);
        assert_eq!(part(&[1, 2, 3, 4, 5], 1, 2), [3, 4, 5]);
    }

    #[test]
    fn an_error_of_the_first_process_is_told_to_the_others() {
        let said = on_all(3, |ranks| {
            let found = from_first(ranks, || Ok::<_, anyhow::Error>(ranks.rank() + 5)).unwrap();
            let error = from_first::<u8>(ranks, || Err(anyhow!("the disk is full"))).unwrap_err();
            (found, format!("{error:#}"), any(ranks, ranks.rank() == 2).unwrap(), any(ranks, false).unwrap())
        });
        assert!(said.iter().all(|(found, error, some, none)| *found == 5 && error.contains("full") && *some && !none));
        assert!(said[1].1.starts_with("the first process stopped"));
    }

    #[test]
    fn units_are_the_checkpoints_the_keys_or_the_processes() {
        assert_eq!(gradient_units(None, None, &Solo).unwrap(), 1);
        assert_eq!(gradient_units(Some(8), None, &Solo).unwrap(), 8);
        assert_eq!(gradient_units(None, Some(4), &Solo).unwrap(), 4);
        let two = in_process(2).remove(0);
        assert_eq!(gradient_units(None, None, &two).unwrap(), 2);
        let error = gradient_units(None, Some(1), &two).unwrap_err().to_string();
        assert!(error.starts_with("the checkpoint has 1 gradient units a step, and 2 processes cannot"), "{error}");
        let error = gradient_units(None, None, &in_process(3).remove(0)).unwrap_err().to_string();
        assert!(error.starts_with("there are 3 gradient units") && error.ends_with("say gradient_units"), "{error}");
    }

    #[test]
    fn responses_travel_bit_by_bit() {
        let responses = vec![
            Response { tokens: vec![3, 1], logprobs: vec![-0.1, f32::MIN_POSITIVE], finish: Finish::Stop },
            Response { tokens: vec![], logprobs: vec![], finish: Finish::Length },
            Response { tokens: vec![9], logprobs: vec![-0.0], finish: Finish::Length },
        ];
        assert_eq!(from_bytes(&to_bytes(&responses)), responses);
    }
}
