//! The choice of a free array for a request, and of arrays to release.

use std::collections::BTreeMap;

/// Free arrays by capacity, and the count of numbers in use. `T` is an array, or `()` where memory is only planned.
///
/// All arrays together never exceed the peak of numbers in use: if need be, free arrays are released before one is
/// made. So the memory of a run is that of its peak, independent of what runs before and after.
#[derive(Debug)]
pub(crate) struct ArrayPool<T> {
    by_capacity: BTreeMap<usize, Vec<(u64, T)>>,
    /// Total size of the free arrays.
    free: usize,
    in_use: usize,
    /// The peak of `in_use`.
    most: usize,
    /// Number of arrays freed so far; orders them by age.
    clock: u64,
}

/// The result of a request.
#[derive(Debug, PartialEq)]
pub(crate) enum Taken<T> {
    /// A free array, and its capacity.
    Free(usize, T),
    /// Make a new one of that capacity, after dropping these: capacities and arrays.
    New(usize, Vec<(usize, T)>),
}

/// A free array up to this much larger than the request is reused: batches differ in size from step to step.
const NEAR: [usize; 2] = [3, 2];
/// A free array up to this much larger is reused if a new one would exceed the peak.
const FAR: [usize; 2] = [4, 1];

impl<T> ArrayPool<T> {
    pub(crate) const fn new() -> ArrayPool<T> {
        ArrayPool { by_capacity: BTreeMap::new(), free: 0, in_use: 0, most: 0, clock: 0 }
    }

    /// Takes an array of at least `len` numbers, for short-lived use.
    pub(crate) fn take(&mut self, len: usize) -> Taken<T> {
        let capacity = size_class(len);
        let grows = self.in_use + self.free + capacity > self.most;
        let found = self.smallest(capacity, NEAR).or_else(|| self.smallest(capacity, FAR).filter(|_| grows));
        self.reuse(found).unwrap_or_else(|| self.make(capacity))
    }

    /// Takes an array of exactly `len` numbers, for long-lived use: spare capacity would be wasted.
    pub(crate) fn take_exact(&mut self, len: usize) -> Taken<T> {
        let found = self.by_capacity.contains_key(&len).then_some(len);
        self.reuse(found).unwrap_or_else(|| self.make(len))
    }

    fn reuse(&mut self, found: Option<usize>) -> Option<Taken<T>> {
        let array = self.remove_newest(found?);
        self.take_into_use(found?);
        Some(Taken::Free(found?, array))
    }

    fn make(&mut self, capacity: usize) -> Taken<T> {
        let mut gone = Vec::new();
        while self.in_use + self.free + capacity > self.most
            && let Some(oldest) = self.remove_oldest()
        {
            gone.push(oldest);
        }
        self.take_into_use(capacity);
        Taken::New(capacity, gone)
    }

    /// Returns an array of this capacity.
    pub(crate) fn put(&mut self, capacity: usize, array: T) {
        self.in_use -= capacity;
        self.free += capacity;
        self.clock += 1;
        self.by_capacity.entry(capacity).or_default().push((self.clock, array));
    }

    /// Numbers in use, and their peak.
    pub(crate) fn in_use(&self) -> [usize; 2] {
        [self.in_use, self.most]
    }

    /// Removes and returns the free arrays, and resets the peak.
    pub(crate) fn trim(&mut self) -> Vec<T> {
        (self.free, self.most) = (0, self.in_use);
        let arrays = std::mem::take(&mut self.by_capacity).into_values().flatten();
        arrays.map(|(_, array)| array).collect()
    }

    fn take_into_use(&mut self, capacity: usize) {
        self.in_use += capacity;
        self.most = self.most.max(self.in_use);
    }

    /// The smallest capacity of a free array from `capacity` up to `times / of` times it.
    fn smallest(&self, capacity: usize, [times, of]: [usize; 2]) -> Option<usize> {
        self.by_capacity.range(capacity..=capacity.saturating_mul(times) / of).next().map(|(&found, _)| found)
    }

    fn remove_newest(&mut self, capacity: usize) -> T {
        let arrays = self.by_capacity.get_mut(&capacity).expect("the capacity was found");
        let (_, array) = arrays.pop().expect("capacities without arrays are removed");
        self.removed(capacity);
        array
    }

    /// Removes the array that has been free for longest.
    fn remove_oldest(&mut self) -> Option<(usize, T)> {
        let since = |arrays: &Vec<(u64, T)>| arrays.first().map(|(since, _)| *since);
        let (&capacity, _) = self.by_capacity.iter().min_by_key(|(_, arrays)| since(arrays))?;
        let (_, array) = self.by_capacity.get_mut(&capacity)?.remove(0);
        self.removed(capacity);
        Some((capacity, array))
    }

    fn removed(&mut self, capacity: usize) {
        self.free -= capacity;
        if self.by_capacity.get(&capacity).is_some_and(Vec::is_empty) {
            self.by_capacity.remove(&capacity);
        }
    }
}

/// Eight sizes per power of two: at most an eighth is wasted, and nearly equal sizes share memory.
pub(crate) fn size_class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(1);
    len.div_ceil(step) * step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_waste_at_most_an_eighth_and_are_stable() {
        for len in [1 << 14, 20_000, 65_537, 1_000_003] {
            let class = size_class(len);
            assert!(class >= len && (class - len) * 8 <= len, "{len} -> {class}");
            assert_eq!(size_class(class), class);
        }
    }

    /// Takes arrays of these lengths together, then frees them. Returns the sizes made, and the released arrays.
    fn pass(free: &mut ArrayPool<&'static str>, lengths: &[(usize, &'static str)]) -> (Vec<usize>, Vec<&'static str>) {
        let (mut made, mut gone, mut held) = (Vec::new(), Vec::new(), Vec::new());
        for &(len, name) in lengths {
            match free.take(len) {
                Taken::Free(capacity, old) => held.push((capacity, old)),
                Taken::New(capacity, old) => {
                    made.push(capacity);
                    gone.extend(old.into_iter().map(|(_, name)| name));
                    held.push((capacity, name));
                }
            }
        }
        held.into_iter().for_each(|(capacity, name)| free.put(capacity, name));
        (made, gone)
    }

    #[test]
    fn a_pass_finds_the_arrays_of_the_one_before_it() {
        let mut free = ArrayPool::new();
        assert_eq!(pass(&mut free, &[(100, "a"), (200, "b")]), (vec![104, 208], vec![]));
        assert_eq!(pass(&mut free, &[(200, "c"), (100, "d")]), (vec![], vec![]));
        assert_eq!(pass(&mut free, &[(50, "e"), (60, "f")]), (vec![], vec![]), "up to four times as large");
        assert_eq!(pass(&mut free, &[(100, "g"), (200, "h")]), (vec![], vec![]));
    }

    #[test]
    fn what_stays_has_an_array_of_its_size() {
        let mut free = ArrayPool::new();
        pass(&mut free, &[(100, "a")]);
        assert_eq!(free.take_exact(101), Taken::New(101, vec![(104, "a")]));
        free.put(101, "b");
        assert_eq!(free.take_exact(101), Taken::Free(101, "b"));
    }

    #[test]
    fn arrays_that_nobody_uses_go_before_memory_grows() {
        let mut free = ArrayPool::new();
        pass(&mut free, &[(64, "old"), (512, "large")]);
        // 8 numbers are an eighth of 64: too few for either, and 576 were in use before.
        assert_eq!(pass(&mut free, &[(8, "small")]), (vec![8], vec!["old"]));
        // The space released by "old" is enough for these.
        assert_eq!(pass(&mut free, &[(8, "small"), (16, "next"), (16, "last")]), (vec![16, 16], vec![]));
        assert_eq!(pass(&mut free, &[(1024, "larger")]).1.len(), 4, "everything goes");
        assert_eq!((free.free, free.in_use, free.most), (1024, 0, 1024));
    }
}
