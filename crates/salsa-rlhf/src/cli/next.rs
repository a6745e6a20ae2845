//! Suggestions of next steps: a few commands on stderr, after a run or a stage has finished.
use std::path::Path;

use crate::{
    recipe::Recipe,
    stage::{
        StageContext,
        kind::{Kind, Produces},
    },
};

/// A description, and the command for it.
type Step = (String, String);

/// Placeholder for the path of the result, in a command of [`Kind::next`].
const OUT: &str = "OUT";

/// Line width: that of the narrowest usual terminal.
const WIDTH: usize = 80;

/// Suggests next steps for the product of a stage.
pub(super) fn after_stage(kind: &Kind, product: &Path, context: &StageContext) {
    // Output written to a pipe cannot be used again.
    let is_stream = ["/dev", "/proc"].iter().any(|folder| product.starts_with(folder));
    if !is_stream && product.exists() {
        say(&of_stage(kind, product), context);
    }
}

/// Suggests next steps for a finished run.
pub(super) fn after_run(recipe: &Recipe, more: &[(&str, &str)], context: &StageContext) {
    let mut steps = of_run(recipe);
    steps.extend(more.iter().map(|(what, command)| ((*what).to_owned(), (*command).to_owned())));
    say(&steps, context);
}

fn of_stage(kind: &Kind, product: &Path) -> Vec<Step> {
    let word = quoted(&product.to_string_lossy());
    kind.next.iter().map(|(what, command)| ((*what).to_owned(), command.replace(OUT, &word))).collect()
}

fn of_run(recipe: &Recipe) -> Vec<Step> {
    let trained = recipe
        .steps
        .iter()
        .rfind(|step| step.kind.leaves == Produces::LanguageModel && step.dir.join("stage.json").exists());
    let Some(step) = trained else { return Vec::new() };
    let (name, dir) = (&step.name, quoted(&step.dir.to_string_lossy()));
    let file = quoted(&recipe.out.join("recipe.yaml").to_string_lossy());
    vec![
        (format!("talk to {name}"), format!("salsa chat --model {dir}")),
        (
            format!("make {name} anew with a change"),
            format!("salsa run {file} --from {name} --set stages.{name}.KEY=VALUE"),
        ),
    ]
}

fn say(steps: &[Step], context: &StageContext) {
    if !steps.is_empty() {
        context.say(&text(steps));
    }
}

/// Description and command side by side or, if that is too wide, one below the other.
fn text(steps: &[Step]) -> String {
    let width = steps.iter().map(|(what, _)| what.chars().count()).max().unwrap_or(0);
    let beside = |(what, command): &Step| format!("  {what:width$}  {command}");
    if steps.iter().all(|step| beside(step).chars().count() <= WIDTH) {
        return steps.iter().fold("next:".to_owned(), |text, step| text + "\n" + &beside(step));
    }
    steps.iter().fold("next:".to_owned(), |text, (what, command)| format!("{text}\n  {what}:\n    {command}"))
}

/// Quotes a word for a shell command line.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_./+:@%=,".contains(c);
    if word.chars().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::{Asked, asked, cli, flags::Flags},
        stage::table::STAGES,
    };

    #[test]
    fn every_command_that_is_proposed_is_one() {
        let mut count = 0;
        for (_, command) in STAGES.iter().flat_map(|kind| of_stage(kind, Path::new("out"))) {
            let words: Vec<&str> = command.split_whitespace().collect();
            if words[0] != "salsa" {
                assert!(words.len() == 1 && words[0].starts_with("out/"), "{command}: neither a command nor a file");
                continue;
            }
            let matches = cli().try_get_matches_from(&words).unwrap_or_else(|error| panic!("{command}: {error}"));
            if let Asked::Stage(kind, words) = asked(&matches).unwrap() {
                let models = words.iter().take_while(|word| !word.starts_with('-')).count();
                let flags = Flags::parse(&words[models..]).unwrap();
                let error = (kind.load)(None, &flags.pairs).err().map_or(String::new(), |error| format!("{error:#}"));
                assert!(!error.contains("unknown key"), "{command}: {error}");
            }
            count += 1;
        }
        assert!(count >= 15, "{count}");
    }

    #[test]
    fn commands_stand_beside_their_purpose_where_there_is_room() {
        let step = |what: &str, command: &str| (what.to_owned(), command.to_owned());
        let short = [step("talk to it", "salsa chat --model a"), step("look", "a/b.html")];
        assert_eq!(text(&short), "next:\n  talk to it  salsa chat --model a\n  look        a/b.html");
        let long = [step("look", &"x".repeat(80))];
        assert_eq!(text(&long), format!("next:\n  look:\n    {}", "x".repeat(80)));
        assert_eq!((quoted("a/b-1.x").as_str(), quoted("my run's").as_str()), ("a/b-1.x", r"'my run'\''s'"));
    }
}
