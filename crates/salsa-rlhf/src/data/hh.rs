//! HH-RLHF transcripts: `"\n\nHuman: …\n\nAssistant: …"`.

use crate::chat::Message;

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// A split pair of transcripts.
pub(super) struct Pair {
    pub prompt: Vec<Message>,
    pub chosen: Vec<Message>,
    pub rejected: Vec<Message>,
}

/// Whether `text` is a transcript: it begins with a human turn.
pub(super) fn is_transcript(text: &str) -> bool {
    text.starts_with(HUMAN)
}

/// Splits two transcripts of one conversation. The prompt is their longest common prefix, cut after its last
/// `"\n\nAssistant:"`; the rest of each is the reply, even if it contains a marker. `None` if the common prefix has no
/// assistant marker: the two then do not answer the same prompt.
pub(super) fn pair(chosen: &str, rejected: &str) -> Option<Pair> {
    let common = common_prefix(chosen, rejected);
    let cut = common.rfind(ASSISTANT)? + ASSISTANT.len();
    Some(Pair {
        prompt: messages(&chosen[..cut - ASSISTANT.len()]),
        chosen: vec![Message::new("assistant", trim(&chosen[cut..]))],
        rejected: vec![Message::new("assistant", trim(&rejected[cut..]))],
    })
}

/// The turns of a transcript. Consecutive turns of one speaker become one message, joined by an empty line; an open
/// `"\n\nAssistant:"` at the end, with or without trailing white space, is not a turn.
pub(super) fn messages(transcript: &str) -> Vec<Message> {
    let text = transcript.trim_end().strip_suffix(ASSISTANT).unwrap_or(transcript);
    let mut turns: Vec<Message> = Vec::new();
    let mut rest = text;
    while let Some((role, body)) = strip_marker(rest) {
        let end = next_marker(body).unwrap_or(body.len());
        let content = trim(&body[..end]);
        match turns.last_mut() {
            Some(last) if last.role == role => last.content = format!("{}\n\n{content}", last.content),
            _ => turns.push(Message::new(role, content)),
        }
        rest = &body[end..];
    }
    turns
}

/// The first human message: between the leading `"\n\nHuman:"` and the first `"\n\nAssistant:"`.
pub(super) fn opening(transcript: &str) -> &str {
    let body = transcript.strip_prefix(HUMAN).unwrap_or(transcript);
    trim(&body[..body.find(ASSISTANT).unwrap_or(body.len())])
}

/// The longest common prefix of two texts, in whole characters.
pub(super) fn common_prefix<'a>(a: &'a str, b: &str) -> &'a str {
    let equal = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let mut end = equal;
    while !a.is_char_boundary(end) {
        end -= 1;
    }
    &a[..end]
}

/// Trims spaces, tabs and line ends at both ends.
pub(super) fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t', '\r', '\n'])
}

fn strip_marker(text: &str) -> Option<(&'static str, &str)> {
    let human = text.strip_prefix(HUMAN).map(|rest| ("user", rest));
    human.or_else(|| text.strip_prefix(ASSISTANT).map(|rest| ("assistant", rest)))
}

fn next_marker(text: &str) -> Option<usize> {
    [text.find(HUMAN), text.find(ASSISTANT)].into_iter().flatten().min()
}
