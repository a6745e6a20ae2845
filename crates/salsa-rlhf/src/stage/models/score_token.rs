//! Warnings where a reward model's scores are read at another token here than elsewhere.
use crate::{
    checkpoint::Checkpoint,
    stage::{StageContext, text::encoder::Encoder},
};

/// Warns if a reward model was trained to be scored elsewhere than at the end token, where scores are read here.
pub(crate) fn say_where_scores_are_read(checkpoint: &Checkpoint, encoder: Option<&Encoder>, context: &StageContext) {
    if !checkpoint.is_foreign_reward_model() {
        return;
    }
    let dir = checkpoint.dir().display();
    if let Some(text) = encoder.and_then(Encoder::behind_the_end) {
        context.print_once(&format!(
            "{dir}: its chat template writes {text:?} behind the end token. If it was trained on all that the template \
             writes, as TRL does, its scores were read behind the end token; they are read at the end token here, and may \
             mean less"
        ));
    } else if let Some(pad) = checkpoint.end_token_that_pads() {
        context.print_once(&format!(
            "{dir}: its pad_token_id {pad} is an end token, so transformers and TRL trained it to be read at the token before \
             the end of what ends with it; it is read at the end token here, and its scores may mean less"
        ));
    }
}

/// Warns if PEFT would read the scores of a reward adapter at another token than Salsa, which reads them at the end
/// token: an adapter has no `config.json`, and that of its base pads with an end token.
pub(crate) fn say_where_peft_reads_scores(base: &Checkpoint, context: &StageContext) {
    let Some(pad) = base.padding_end_token() else { return };
    context.print_once(&format!(
        "{}: its pad_token_id {pad} is an end token. PEFT and transformers go by it when they load a reward adapter of this \
         base, and read scores at the token before the end; Salsa reads them at the end. For the same scores there merge the \
         adapter (salsa merge), or load the base with pad_token_id=None and score one sequence at a time",
        base.base_dir().display()
    ));
}
