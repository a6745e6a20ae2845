//! Rotary positions of a batch: tables of angles, and which of their rows each token takes.

use super::{Base, Transformer};
use crate::backend::{Backend, RotaryTable};
use crate::spec::{Rope, Rotary};
use std::sync::Arc;

/// A token's position, and the length of its sequence.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub position: u32,
    pub length: u32,
}

/// The angles of a batch.
pub(super) struct Rotation<B: Backend> {
    main: Turns<B>,
    local: Option<Turns<B>>,
}

/// A table of angles, and the row of each token in it.
pub(super) struct Turns<B: Backend> {
    pub rows: Vec<u32>,
    pub angles: Arc<B::Angles>,
}

/// The table of one rope: for each of some regimes, as many positions.
pub(super) struct Table<B: Backend> {
    regimes: Vec<usize>,
    positions: usize,
    angles: Arc<B::Angles>,
}

impl<B: Backend> Rotation<B> {
    /// The angles of a layer, if it has rotary positions.
    pub(super) fn of(&self, rotary: Rotary) -> Option<&Turns<B>> {
        match rotary {
            Rotary::Main => Some(&self.main),
            Rotary::Local => self.local.as_ref(),
            Rotary::None => None,
        }
    }
}

impl<B: Backend> Transformer<B> {
    pub(super) fn rotation(&self, places: &[Place]) -> Rotation<B> {
        let [main, local] = [Some(&self.spec.rope), self.spec.options.local_rope.as_ref()];
        let turns = |kind: usize, rope: &Rope| self.base.turns(kind, rope, places);
        Rotation { main: turns(0, main.expect("every model has one")), local: local.map(|rope| turns(1, rope)) }
    }

    /// Whether a sequence that grows to `length` tokens has other angles than before, also for its earlier tokens.
    pub(super) fn turns_anew(&self, length: usize) -> bool {
        let anew = |rope: &Rope| rope.regime(length) != rope.regime(length - 1);
        anew(&self.spec.rope) || self.spec.options.local_rope.as_ref().is_some_and(anew)
    }
}

impl<B: Backend> Base<B> {
    fn turns(&self, kind: usize, rope: &Rope, places: &[Place]) -> Turns<B> {
        let longest = places.iter().map(|place| place.position as usize + 1).max().unwrap_or(0);
        let mut regimes: Vec<usize> = places.iter().map(|place| rope.regime(place.length as usize)).collect();
        regimes.sort_unstable();
        regimes.dedup();
        let mut known = self.rotary[kind].lock().expect("no code panics while it holds the table");
        let fits = |table: &Table<B>| {
            longest <= table.positions && regimes.iter().all(|regime| table.regimes.contains(regime))
        };
        if !known.as_ref().is_some_and(fits) {
            // Short sequences and long ones alternate.
            if !rope.is_fixed() && !regimes.contains(&0) {
                regimes.insert(0, 0);
            }
            *known = Some(self.table(rope, regimes, longest.next_power_of_two()));
        }
        let table = known.as_ref().expect("it was made");
        let row = |place: &Place| {
            let regime = rope.regime(place.length as usize);
            let at = table.regimes.iter().position(|known| *known == regime).expect("the table has every regime");
            (at * table.positions) as u32 + place.position
        };
        Turns { rows: places.iter().map(row).collect(), angles: table.angles.clone() }
    }

    /// Cosines and sines of `positions` positions in each of the regimes, times the attention factor.
    fn table(&self, rope: &Rope, regimes: Vec<usize>, positions: usize) -> Table<B> {
        let (dim, factor) = (self.spec.rotary_dim(), rope.attention_factor());
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for regime in &regimes {
            let frequencies = rope.frequencies(dim, *regime);
            let angles = (0..positions)
                .flat_map(|position| frequencies.iter().map(move |frequency| f64::from(position as f32 * frequency)));
            let (sines, cosines): (Vec<f32>, Vec<f32>) =
                angles.map(|angle| (angle.sin() as f32 * factor, angle.cos() as f32 * factor)).unzip();
            sin.extend(sines);
            cos.extend(cosines);
        }
        let angles = Arc::new(self.backend.angles(RotaryTable { half: dim / 2, cos, sin }));
        Table { regimes, positions, angles }
    }
}
