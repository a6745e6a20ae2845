//! A model that several processes train together, or that one trains in several gradient units.

use super::{Moment, TrainableTransformer, runs};
use crate::backend::cpu::adamw;
use crate::backend::{AdamWStep, Backend};
use crate::comm::{Comm, Solo};
use crate::error::ModelError;
use crate::model::parallel::{Parallel, host};
use std::ops::Range;
use std::sync::Arc;

impl<B: Backend> TrainableTransformer<B> {
    /// Trains this model together with the other processes of `comm`, which have made the same one. Before the first
    /// step, or before [`TrainableTransformer::restore`].
    ///
    /// A step then has `units` units, of which each process computes its own: backward passes, and
    /// [`TrainableTransformer::finish_unit`] after the last one of each unit. Weights, moments and norm have the same
    /// bits on any number of processes, which [`TrainableTransformer::adamw_step`] keeps in step.
    ///
    /// # Errors
    ///
    /// If `units` is no power of two or no multiple of the number of processes, or the model is on a GPU.
    ///
    /// # Panics
    ///
    /// After the first step.
    pub fn share(&mut self, comm: Arc<dyn Comm>, units: usize) -> Result<(), ModelError> {
        assert_eq!(self.step, 0, "a model is shared before its first step");
        if units == 1 && comm.size() == 1 {
            return Ok(());
        }
        let backend = &self.model.base.backend;
        let Some(weights) = backend.host(&mut self.weights) else {
            return Err(ModelError::Shared(
                "several processes, and gradient_units above 1, train on the CPU alone; say device: cpu".into(),
            ));
        };
        let parallel = Parallel::new(comm, units, weights.len())?;
        [self.m, self.v] = [(); 2].map(|()| backend.flat_zeros(parallel.own().len()));
        self.parallel = Some(parallel);
        Ok(())
    }

    /// The number of gradient units of a step.
    pub fn units(&self) -> usize {
        self.parallel.as_ref().map_or(1, Parallel::units)
    }

    /// Those that this process computes.
    pub fn own_units(&self) -> Range<usize> {
        self.parallel.as_ref().map_or(0..1, Parallel::own_units)
    }

    /// The processes that train this model.
    pub fn comm(&self) -> &dyn Comm {
        self.parallel.as_ref().map_or(&Solo, Parallel::comm)
    }

    /// Ends a unit of the step: the next backward pass begins another one. Without effect unless the model is shared.
    pub fn finish_unit(&mut self) {
        if let Some(parallel) = &mut self.parallel {
            parallel.finish(&self.model.base.backend, &mut self.gradients);
        }
    }

    /// Calls `each` with a moment of all weights in order, piece by piece, on the first process; all processes of a
    /// shared model call this together.
    ///
    /// # Errors
    ///
    /// If `each` fails, or the processes cannot exchange bytes.
    pub fn each_moment<E: From<ModelError>>(
        &self,
        moment: Moment,
        mut each: impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let own = match moment {
            Moment::First => &self.m,
            Moment::Second => &self.v,
        };
        let own = self.model.base.backend.numbers(own);
        match &self.parallel {
            None => each(&own),
            Some(parallel) => parallel.to_first(&own, each),
        }
    }

    /// The weights whose moments this process keeps: all, or of a shared model its slice.
    pub fn kept_moments(&self) -> Range<usize> {
        match &self.parallel {
            Some(parallel) => parallel.own(),
            None => 0..self.tensors().iter().map(|tensor| tensor.range.end).max().unwrap_or(0),
        }
    }

    /// As `update`, where the moments are those of the range `slice` alone.
    pub(super) fn update_slice(&mut self, slice: Range<usize>, step: &AdamWStep) {
        let runs = runs(self.tensors());
        let TrainableTransformer { weights, gradients, m, v, model, .. } = self;
        let backend = &model.base.backend;
        let [weights, gradients, m, v] = [weights, gradients, m, v].map(|flat| host(backend, flat));
        for (range, decay) in runs {
            let range = range.start.max(slice.start)..range.end.min(slice.end);
            if range.start < range.end {
                let own = range.start - slice.start..range.end - slice.start;
                let [weights, gradients] = [&mut *weights, &mut *gradients].map(|flat| &mut flat[range.clone()]);
                let [m, v] = [&mut *m, &mut *v].map(|flat| &mut flat[own.clone()]);
                adamw::update(weights, gradients, m, v, decay, step);
            }
        }
    }
}
