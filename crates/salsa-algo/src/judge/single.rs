//! MT-Bench, single answers: means of grades.

/// The grade of one answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grade {
    /// The turn of the conversation, from 1.
    pub turn: u32,
    /// The grade; none if the judge gave none (FastChat writes −1).
    pub score: Option<f64>,
}

/// The means of a model's grades.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Means {
    /// Mean of the first turn; none without grades.
    pub turn_1: Option<f64>,
    /// Mean of the second turn; none without grades.
    pub turn_2: Option<f64>,
    /// Mean of all grades, of any turn; not the mean of the two means.
    pub all: Option<f64>,
    /// Number of grades.
    pub graded: usize,
    /// Answers without a grade, which are skipped.
    pub dropped: usize,
}

/// Returns the means of a model's grades, skipping missing ones.
///
/// ```text
/// mean over { grade : grade given, turn = 1 };  the same for turn 2;  the same for all
/// ```
///
/// Source: FastChat `show_result.py`, mode `single`.
///
/// ```
/// use salsa_algo::judge::single::{Grade, means};
/// let grade = |turn, score| Grade { turn, score };
/// let means = means(&[grade(1, Some(8.0)), grade(1, Some(6.0)), grade(2, Some(1.0)), grade(2, None)]);
/// assert_eq!((means.turn_1, means.turn_2, means.all), (Some(7.0), Some(1.0), Some(5.0)));
/// assert_eq!((means.graded, means.dropped), (3, 1));
/// ```
pub fn means(grades: &[Grade]) -> Means {
    let mean = |wanted: &dyn Fn(u32) -> bool| {
        let (mut sum, mut count) = (0.0, 0usize);
        for score in grades.iter().filter(|grade| wanted(grade.turn)).filter_map(|grade| grade.score) {
            sum += score;
            count += 1;
        }
        (count > 0).then(|| sum / count as f64)
    };
    let graded = grades.iter().filter(|grade| grade.score.is_some()).count();
    Means {
        turn_1: mean(&|turn| turn == 1),
        turn_2: mean(&|turn| turn == 2),
        all: mean(&|_| true),
        graded,
        dropped: grades.len() - graded,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_grades_have_no_mean() {
        assert_eq!(means(&[]), Means::default());
        let none = means(&[Grade { turn: 2, score: None }]);
        assert_eq!((none.all, none.graded, none.dropped), (None, 0, 1));
        let second = means(&[Grade { turn: 2, score: Some(9.5) }]);
        assert_eq!((second.turn_1, second.turn_2, second.all), (None, Some(9.5), Some(9.5)));
    }
}
