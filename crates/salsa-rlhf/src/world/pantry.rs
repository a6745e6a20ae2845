//! The words of the world: ingredients, verbs, dishes, openings and closings.

/// An ingredient that a prompt can ask for or forbid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ingredient(u8);

/// The kind of dish. Prompts and titles use its noun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// A warm dish, baked, fried or roasted.
    Dish,
    /// A dip, blended or mashed.
    Dip,
    /// A salad, tossed.
    Salad,
    /// A soup, simmered or boiled.
    Soup,
    /// A breakfast, cooked or warmed.
    Breakfast,
    /// A snack, layered or arranged.
    Snack,
    /// A supper from leftovers, fried, baked or roasted. Held out: only the `Ood` split asks for it.
    Supper,
    /// A picnic, layered or arranged. Held out: only the `Ood` split asks for it.
    Picnic,
}

/// The tone of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tone {
    /// No exclamation marks, no courtesies.
    Plain,
    /// Exclamation marks and glad words.
    Cheerful,
    /// Courtesies.
    Formal,
}

/// The effect of a verb on the food, in the order of work in a sensible recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// Work on single ingredients: rinse, peel, chop.
    Prepare,
    /// Bring ingredients together: mix, stir, add, season.
    Combine,
    /// The essential step of a dish: bake, blend, toss, simmer.
    Method,
    /// Serve.
    Serve,
}

/// name | verbs that prepare it | families it belongs in
const INGREDIENTS: [(&str, &str, &str); 34] = [
    ("chickpeas", "rinse drain", "dish dip salad soup snack"),
    ("lentils", "rinse drain", "dish dip salad soup"),
    ("beans", "rinse drain", "dish dip salad soup"),
    ("rice", "rinse measure", "dish salad soup"),
    ("pasta", "measure", "dish salad soup"),
    ("potato", "peel chop", "dish salad soup breakfast"),
    ("carrot", "peel grate chop", "dish dip salad soup snack"),
    ("onion", "peel chop slice", "dish dip salad soup"),
    ("garlic", "peel crush", "dish dip salad soup"),
    ("tomato", "chop slice", "dish dip salad soup breakfast"),
    ("spinach", "rinse chop", "dish dip salad soup breakfast"),
    ("mushrooms", "slice chop", "dish soup breakfast"),
    ("cucumber", "slice grate", "dip salad snack"),
    ("avocado", "peel slice", "dip salad breakfast snack"),
    ("peas", "rinse drain", "dish dip salad soup"),
    ("corn", "rinse drain", "dish dip salad soup snack"),
    ("tofu", "drain chop", "dish salad soup breakfast"),
    ("cheese", "grate slice", "dish dip salad breakfast snack"),
    ("yogurt", "measure", "dip salad breakfast snack"),
    ("milk", "measure", "soup breakfast"),
    ("butter", "measure slice", "dish breakfast snack"),
    ("eggs", "beat", "dish breakfast"),
    ("oats", "measure", "breakfast snack"),
    ("honey", "measure", "dip breakfast snack"),
    ("nuts", "crush chop", "dip salad breakfast snack"),
    ("apple", "peel slice", "salad breakfast snack"),
    ("banana", "peel slice", "breakfast snack"),
    ("berries", "rinse", "breakfast snack"),
    ("bread", "slice", "soup breakfast snack"),
    ("lemon", "slice", "dish dip salad soup"),
    ("basil", "rinse chop", "dish dip salad soup"),
    ("mint", "rinse chop", "dip salad snack"),
    ("cumin", "measure", "dish dip soup"),
    ("ginger", "peel grate", "dish dip soup"),
];

/// Always in the kitchen: free to use, never asked for, never forbidden.
pub(super) const STAPLES: [&str; 4] = ["oil", "salt", "pepper", "water"];

pub(super) const PREPARE: [&str; 9] = ["rinse", "drain", "peel", "chop", "slice", "grate", "crush", "beat", "measure"];
pub(super) const COMBINE: [&str; 4] = ["mix", "stir", "combine", "add"];
pub(super) const METHOD: [&str; 12] =
    ["bake", "fry", "roast", "blend", "mash", "toss", "simmer", "boil", "cook", "warm", "layer", "arrange"];
/// The one combining verb that takes no object: "Season with salt."
pub(super) const SEASON: &str = "season";
pub(super) const SERVE: &str = "serve";

/// A word or two before the verb of a step, in the formal tone.
pub(super) const LEADS: [&str; 2] = ["kindly", "please"];
pub(super) const PLACES: [&str; 5] = ["pan", "pot", "bowl", "oven", "plate"];
pub(super) const MANNERS: [&str; 6] = ["well", "finely", "gently", "warm", "cold", "fresh"];
pub(super) const STATES: [&str; 4] = ["soft", "golden", "smooth", "hot"];
/// Numbers in words, from zero.
pub(super) const NUMBERS: [&str; 8] = ["zero", "one", "two", "three", "four", "five", "six", "seven"];

/// Openings of answers: `LEAD NOUN of INGREDIENTS` and a mark, as in "Hooray, a lovely soup of rice and peas!".
pub(super) const OPENINGS: [(Tone, &str, char); 9] = [
    (Tone::Plain, "A", '.'),
    (Tone::Plain, "Here is a", '.'),
    (Tone::Plain, "This is a", '.'),
    (Tone::Cheerful, "Hooray, a lovely", '!'),
    (Tone::Cheerful, "Wow, a tasty", '!'),
    (Tone::Cheerful, "Yes, a lovely", '!'),
    (Tone::Formal, "We present a", '.'),
    (Tone::Formal, "We suggest a", '.'),
    (Tone::Formal, "Please accept a", '.'),
];

/// Closings of answers.
pub(super) const CLOSINGS: [(Tone, &str); 9] = [
    (Tone::Plain, "That is all."),
    (Tone::Plain, "It is ready."),
    (Tone::Plain, "Done."),
    (Tone::Cheerful, "Enjoy!"),
    (Tone::Cheerful, "Have fun!"),
    (Tone::Cheerful, "Yum, enjoy!"),
    (Tone::Formal, "We wish you a pleasant meal."),
    (Tone::Formal, "With kind regards."),
    (Tone::Formal, "We remain at your service."),
];

const CHEERFUL_WORDS: [&str; 8] = ["hooray", "wow", "yes", "lovely", "tasty", "enjoy", "fun", "yum"];
const FORMAL_WORDS: [&str; 10] =
    ["we", "present", "suggest", "please", "kindly", "accept", "wish", "pleasant", "regards", "service"];

impl Ingredient {
    /// Every ingredient, in the pantry's order.
    pub fn all() -> impl Iterator<Item = Ingredient> {
        (0..INGREDIENTS.len() as u8).map(Ingredient)
    }

    /// The ingredient called `word` (lower case), if there is one.
    pub fn named(word: &str) -> Option<Ingredient> {
        Ingredient::all().find(|i| i.name() == word)
    }

    /// Its name, lower case: "chickpeas".
    pub fn name(self) -> &'static str {
        INGREDIENTS[self.0 as usize].0
    }

    /// The verbs that prepare it: rinse and drain for chickpeas, but never grate.
    pub fn preparations(self) -> impl Iterator<Item = &'static str> {
        INGREDIENTS[self.0 as usize].1.split(' ')
    }

    /// Whether prompts of the ordinary splits ask for it in this family.
    pub fn belongs_in(self, family: Family) -> bool {
        INGREDIENTS[self.0 as usize].2.split(' ').any(|f| f == family.noun())
    }
}

impl Family {
    /// The families of the training, validation and test prompts.
    pub const SEEN: [Family; 6] =
        [Family::Dish, Family::Dip, Family::Salad, Family::Soup, Family::Breakfast, Family::Snack];
    /// The families that only out-of-distribution prompts ask for.
    pub const HELD_OUT: [Family; 2] = [Family::Supper, Family::Picnic];

    /// The noun in prompts and titles: "soup".
    pub fn noun(self) -> &'static str {
        match self {
            Family::Dish => "dish",
            Family::Dip => "dip",
            Family::Salad => "salad",
            Family::Soup => "soup",
            Family::Breakfast => "breakfast",
            Family::Snack => "snack",
            Family::Supper => "supper",
            Family::Picnic => "picnic",
        }
    }

    /// The family with this noun, if there is one.
    pub fn named(word: &str) -> Option<Family> {
        Family::SEEN.into_iter().chain(Family::HELD_OUT).find(|f| f.noun() == word)
    }

    /// The verbs that make this dish.
    pub fn methods(self) -> &'static [&'static str] {
        match self {
            Family::Dish | Family::Supper => &["bake", "fry", "roast"],
            Family::Dip => &["blend", "mash"],
            Family::Salad => &["toss"],
            Family::Soup => &["simmer", "boil"],
            Family::Breakfast => &["cook", "warm"],
            Family::Snack | Family::Picnic => &["layer", "arrange"],
        }
    }

    /// The serving temperatures.
    pub(super) fn temperatures(self) -> &'static [&'static str] {
        match self {
            Family::Dish | Family::Soup | Family::Breakfast | Family::Supper => &["warm"],
            Family::Dip | Family::Salad | Family::Snack | Family::Picnic => &["cold", "fresh"],
        }
    }
}

impl Tone {
    /// The three tones.
    pub const ALL: [Tone; 3] = [Tone::Plain, Tone::Cheerful, Tone::Formal];

    /// The word in prompts: "cheerful".
    pub fn word(self) -> &'static str {
        match self {
            Tone::Plain => "plain",
            Tone::Cheerful => "cheerful",
            Tone::Formal => "formal",
        }
    }

    /// The tone of a (lower-case) word; plain for words of no tone.
    pub(super) fn of(word: &str) -> Tone {
        if CHEERFUL_WORDS.contains(&word) {
            Tone::Cheerful
        } else if FORMAL_WORDS.contains(&word) {
            Tone::Formal
        } else {
            Tone::Plain
        }
    }
}

impl Act {
    /// The act of a (lower-case) word as the verb of a step; `None` if it is not a verb of the kitchen.
    pub fn of(word: &str) -> Option<Act> {
        if PREPARE.contains(&word) {
            Some(Act::Prepare)
        } else if COMBINE.contains(&word) || word == SEASON {
            Some(Act::Combine)
        } else if METHOD.contains(&word) {
            Some(Act::Method)
        } else if word == SERVE {
            Some(Act::Serve)
        } else {
            None
        }
    }
}

/// The number of a word or numeral: 3 for "3" and "three".
pub(super) fn number(word: &str) -> Option<usize> {
    NUMBERS.iter().position(|&n| n == word).or_else(|| word.parse().ok())
}

/// Lower-case words and punctuation marks of a text, in order. An apostrophe, a hyphen or any other sign is a mark too.
pub(super) fn tokens(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut in_word = false;
    for c in text.chars() {
        if c.is_alphanumeric() {
            if !in_word {
                tokens.push(String::new());
            }
            tokens.last_mut().expect("a word was just begun").extend(c.to_lowercase());
            in_word = true;
        } else {
            in_word = false;
            if !c.is_whitespace() {
                tokens.push(c.to_string());
            }
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_agree_with_each_other() {
        for ingredient in Ingredient::all() {
            assert_eq!(Ingredient::named(ingredient.name()), Some(ingredient));
            assert!(ingredient.preparations().all(|v| Act::of(v) == Some(Act::Prepare)), "{}", ingredient.name());
            assert!(Family::SEEN.iter().any(|&f| ingredient.belongs_in(f)), "{}", ingredient.name());
        }
        for family in Family::SEEN.into_iter().chain(Family::HELD_OUT) {
            assert_eq!(Family::named(family.noun()), Some(family));
            assert!(family.methods().iter().all(|v| Act::of(v) == Some(Act::Method)));
        }
        for family in Family::SEEN {
            assert!(Ingredient::all().filter(|i| i.belongs_in(family)).count() >= 10);
        }
        for (tone, lead, mark) in OPENINGS {
            let heard = tokens(lead).iter().map(|w| Tone::of(w)).find(|&t| t != Tone::Plain).unwrap_or(Tone::Plain);
            assert_eq!(heard, tone, "{lead}");
            assert_eq!(mark == '!', tone == Tone::Cheerful, "{lead}");
        }
        for (tone, text) in CLOSINGS {
            let heard = tokens(text).iter().map(|w| Tone::of(w)).find(|&t| t != Tone::Plain).unwrap_or(Tone::Plain);
            assert_eq!(heard, tone, "{text}");
        }
    }

    #[test]
    fn tokens_are_lower_case_words_and_marks() {
        assert_eq!(tokens("1. Mix the rice, well!"), ["1", ".", "mix", "the", "rice", ",", "well", "!"]);
        assert_eq!(tokens(" \n"), [""; 0]);
        assert_eq!((number("3"), number("three"), number("rice")), (Some(3), Some(3), None));
    }
}
