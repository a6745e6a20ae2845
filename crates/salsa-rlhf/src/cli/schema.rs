//! `salsa schema [STAGE|recipe]`
use super::print;
use crate::{
    config::{Usage, names},
    recipe,
    stage::table::{self, STAGES},
};

/// What the schema describes.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  salsa schema > salsa.schema.json\n\n\
    With the line\n  # yaml-language-server: $schema=salsa.schema.json\nat the top of a recipe, an editor that knows \
    the YAML language server completes keys, shows what they mean, and marks those that do not exist.")]
pub(super) struct Arguments {
    /// The name of a stage, for its --config file; or recipe, for a file of `salsa run`.
    #[arg(value_name = "STAGE|recipe", default_value = "recipe")]
    what: String,
}

/// Prints the schema.
pub(super) fn main(arguments: &Arguments) -> anyhow::Result<()> {
    let schema = match (arguments.what.as_str(), table::find(&arguments.what)) {
        ("recipe", _) => recipe::schema::of(STAGES),
        (_, Some(kind)) => {
            let mut schema = (kind.schema)();
            schema["title"] = format!("The keys of salsa {}", kind.name).into();
            schema
        }
        (other, None) => {
            let known = ["recipe"].into_iter().chain(STAGES.iter().map(|kind| kind.name));
            return Err(Usage(format!("there is no stage {other:?}; {}", names::hint(other, known))).into());
        }
    };
    print(&format!("{schema:#}\n"))
}
