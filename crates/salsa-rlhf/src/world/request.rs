//! The request of a prompt, parsed from its text.

use super::pantry::{Family, Ingredient, Tone, number, tokens};

/// The request of a prompt. Lists are sorted, so that equivalent prompts give equal requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The kind of dish. A prompt that names none asks for a dish.
    pub family: Family,
    /// Ingredients that must be used.
    pub wanted: Vec<Ingredient>,
    /// Ingredients that must not appear.
    pub avoided: Vec<Ingredient>,
    /// Number of steps; `None` if not specified.
    pub steps: Option<usize>,
    /// Tone; `None` if not specified.
    pub tone: Option<Tone>,
    /// Further wishes.
    pub wishes: Vec<Wish>,
}

/// A wish beyond ingredients, steps and tone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// A title before the steps: "A soup of rice and peas."
    Title,
    /// The last step states the number of servings: "Serve warm for two."
    Serves(usize),
    /// Short steps: on average at most 4.5 words.
    Short,
    /// The first step uses this ingredient.
    First(Ingredient),
    /// This ingredient is not used before the last step that is not serving.
    Last(Ingredient),
}

/// Ingredients after one of these words are forbidden...
const AVOID: [&str; 9] = ["without", "no", "not", "avoid", "skip", "leave", "allergic", "nobody", "ban"];
/// ...until the sentence ends or one of these words follows.
const USE: [&str; 7] = ["with", "using", "uses", "from", "in", "for", "have"];

impl Request {
    /// Parses a prompt. Never fails: anything that the text does not ask for is absent from the request.
    ///
    /// ```
    /// use salsa_rlhf::world::{Request, Tone};
    /// let request = Request::parse("Please give me a soup with rice, without garlic, in 3 steps. Keep it cheerful.");
    /// assert_eq!(request.wanted[0].name(), "rice");
    /// assert_eq!(request.avoided[0].name(), "garlic");
    /// assert_eq!((request.steps, request.tone), (Some(3), Some(Tone::Cheerful)));
    /// ```
    pub fn parse(prompt: &str) -> Request {
        let mut request = Request {
            family: Family::Dish,
            wanted: Vec::new(),
            avoided: Vec::new(),
            steps: None,
            tone: None,
            wishes: Vec::new(),
        };
        let tokens = tokens(prompt);
        for sentence in tokens.split(|t| matches!(t.as_str(), "." | "?" | "!" | ";" | ":")) {
            request.read_sentence(sentence);
        }
        sort(&mut request.wanted);
        sort(&mut request.avoided);
        sort(&mut request.wishes);
        request
    }

    /// A canonical text of the request, independent of the wording: "soup|peas,rice|garlic|3|cheerful|title".
    pub fn key(&self) -> String {
        let names = |list: &[Ingredient]| list.iter().map(|i| i.name()).collect::<Vec<_>>().join(",");
        let wishes: Vec<String> = self.wishes.iter().map(|w| w.key()).collect();
        format!(
            "{}|{}|{}|{}|{}|{}",
            self.family.noun(),
            names(&self.wanted),
            names(&self.avoided),
            self.steps.map_or("any".to_owned(), |n| n.to_string()),
            self.tone.map_or("any", Tone::word),
            wishes.join(",")
        )
    }

    fn read_sentence(&mut self, words: &[String]) {
        let has = |list: &[&str]| words.iter().any(|w| list.contains(&w.as_str()));
        let (starts, lasts) = (has(&["start", "begin"]), has(&["last"]));
        if has(&["title"]) {
            self.wishes.push(Wish::Title);
        }
        if has(&["short", "brief"]) {
            self.wishes.push(Wish::Short);
        }
        let mut avoiding = false;
        for (i, word) in words.iter().enumerate() {
            let word = word.as_str();
            if AVOID.contains(&word) {
                avoiding = true;
            } else if USE.contains(&word) {
                avoiding = false;
            } else if let Some(ingredient) = Ingredient::named(word) {
                match (avoiding, starts, lasts) {
                    (true, ..) => self.avoided.push(ingredient),
                    (_, true, _) => self.wishes.push(Wish::First(ingredient)),
                    (_, _, true) => self.wishes.push(Wish::Last(ingredient)),
                    _ => self.wanted.push(ingredient),
                }
            } else if let Some(tone) = Tone::ALL.into_iter().find(|t| t.word() == word) {
                self.tone = Some(tone);
            } else if let Some(family) = Family::named(word) {
                self.family = family;
            } else if let Some(n) = number(word) {
                match words.get(i + 1).map(String::as_str) {
                    Some("step" | "steps") => self.steps = Some(n),
                    Some("people") => self.wishes.push(Wish::Serves(n)),
                    _ => {}
                }
            }
        }
    }
}

impl Wish {
    fn key(self) -> String {
        match self {
            Wish::Title => "title".to_owned(),
            Wish::Serves(n) => format!("serves {n}"),
            Wish::Short => "short".to_owned(),
            Wish::First(i) => format!("first {}", i.name()),
            Wish::Last(i) => format!("last {}", i.name()),
        }
    }
}

fn sort<T: Ord>(list: &mut Vec<T>) {
    list.sort();
    list.dedup();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_asked() {
        let table = [
            ("Please give me a soup with rice and peas, without garlic, in 3 steps.", "soup|rice,peas|garlic|3|any|"),
            ("I have milk. What breakfast can I make? Be brief. Use a plain tone.", "breakfast|milk||any|plain|short"),
            (
                "A recipe with tofu, but no onion or corn. Start with the tofu.",
                "dish|tofu|onion,corn|any|any|first tofu",
            ),
            ("A dip with peas for two people in four steps. Add the peas last.", "dip|peas||4|any|serves 2,last peas"),
            ("A dip without garlic, with peas and from corn.", "dip|peas,corn|garlic|any|any|"),
            ("Hello!", "dish|||any|any|"),
            ("", "dish|||any|any|"),
        ];
        for (prompt, key) in table {
            assert_eq!(Request::parse(prompt).key(), key, "{prompt}");
        }
    }
}
