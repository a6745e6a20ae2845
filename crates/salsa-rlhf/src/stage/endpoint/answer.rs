//! Interpretation of a server's response: a reply, a failure, a retry, or the end.
use std::time::Duration;

use serde_json::Value;

use super::{Failure, FailureKind, Reply, ServerParameters, Settings, Usage};

/// How to proceed after a response.
#[derive(Debug, PartialEq)]
pub(in crate::stage) enum Meaning {
    /// The judge replied.
    Reply(Reply),
    /// There is no reply, and a retry would not help.
    Failed(Failure),
    /// A retry may succeed, after the pause that the server requested.
    Again(Failure, Option<Duration>),
    /// The server refuses a parameter; the call may be repeated without it.
    Without(ServerParameters),
    /// No call can succeed.
    Fatal(String),
}

/// Maximum number of characters of a server's message.
const LONGEST_MESSAGE: usize = 300;

/// Interprets a response with this status and body.
pub(in crate::stage) fn read(
    status: u16,
    wait: Option<Duration>,
    should_retry: Option<bool>,
    body: &str,
    settings: &Settings,
    dialect: ServerParameters,
) -> Meaning {
    let parsed: Option<Value> = serde_json::from_str(body).ok();
    if (200..300).contains(&status) {
        return match &parsed {
            Some(value) if value["choices"].is_array() => reply(value, settings),
            Some(value) if !value["error"].is_null() => {
                Meaning::Again(Failure::new(FailureKind::ServerError, Refusal::of(value, body).message), wait)
            }
            _ => Meaning::Again(Failure::new(FailureKind::NotAnAnswer, shortened(body)), wait),
        };
    }
    let refusal = parsed.as_ref().map_or_else(|| Refusal::of_text(body), |value| Refusal::of(value, body));
    let again = |kind| match should_retry {
        Some(false) => Meaning::Failed(Failure::new(kind, refusal.message.clone())),
        _ => Meaning::Again(Failure::new(kind, refusal.message.clone()), wait),
    };
    match status {
        300..=399 => Meaning::Fatal("it redirects to another address; give that one as base_url".to_owned()),
        401 | 403 => Meaning::Fatal(format!("it refuses the key ({status}): {}", refusal.message)),
        404 => Meaning::Fatal(format!(
            "it knows no such address or model (404): {}; base_url ends before /chat/completions, mostly with /v1",
            refusal.message
        )),
        402 => Meaning::Fatal(format!("there is no credit left (402): {}", refusal.message)),
        429 if refusal.code == "insufficient_quota" => {
            Meaning::Fatal(format!("the quota is used up (429): {}", refusal.message))
        }
        429 => again(FailureKind::RateLimited),
        408 => again(FailureKind::Timeout),
        409 | 500.. => again(FailureKind::ServerError),
        _ if should_retry == Some(true) => again(FailureKind::BadRequest),
        _ => refused(&refusal, settings, dialect),
    }
}

/// A refused request: for an optional parameter, for its length, or for its content.
fn refused(refusal: &Refusal, settings: &Settings, dialect: ServerParameters) -> Meaning {
    let says = |word: &str| refusal.param == word || refusal.message.contains(word);
    let about = |parameter: &str| refusal.param == parameter || (refusal.param.is_empty() && says(parameter));
    if refusal.code == "content_filter" {
        return Meaning::Failed(Failure::new(FailureKind::ContentFilter, refusal.message.clone()));
    }
    if refusal.code == "context_length_exceeded" || says("maximum context length") || says("context window") {
        return Meaning::Failed(Failure::new(FailureKind::TooLong, refusal.message.clone()));
    }
    if says("max_completion_tokens") && !dialect.completion_tokens {
        return Meaning::Without(ServerParameters { completion_tokens: true, ..dialect });
    }
    if about("temperature") && !dialect.own_temperature {
        return Meaning::Without(ServerParameters { own_temperature: true, ..dialect });
    }
    if about("top_p") && !dialect.own_top_p {
        return Meaning::Without(ServerParameters { own_top_p: true, ..dialect });
    }
    if settings.top_logprobs > 0 && says("logprobs") && !dialect.no_logprobs {
        return Meaning::Without(ServerParameters { no_logprobs: true, ..dialect });
    }
    Meaning::Failed(Failure::new(FailureKind::BadRequest, refusal.message.clone()))
}

/// The error in a server's response.
struct Refusal {
    message: String,
    code: String,
    param: String,
}

impl Refusal {
    /// `{"error": {message, code, param}}`, with a code that is a text or a number; `{"error": text}`; `{"detail": …}`.
    fn of(value: &Value, body: &str) -> Refusal {
        let error = &value["error"];
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let message = [&error["message"], error, &value["message"], &value["detail"]];
        let message = message.into_iter().find(|value| !value.is_null() && !value.is_object());
        let message = message.map_or_else(|| body.to_owned(), text);
        let code = if error["code"].is_null() { String::new() } else { text(&error["code"]) };
        let param = error["param"].as_str().unwrap_or_default().to_owned();
        Refusal { message: shortened(&message), code, param }
    }

    fn of_text(body: &str) -> Refusal {
        Refusal { message: shortened(body), code: String::new(), param: String::new() }
    }
}

/// The start of a message, on one line.
fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line,
    }
}

/// The reply in a response, or the reason why there is none.
fn reply(value: &Value, settings: &Settings) -> Meaning {
    let choice = &value["choices"][0];
    let message = &choice["message"];
    let count = |key: &str| value["usage"][key].as_u64().unwrap_or_default();
    let usage = Usage { prompt_tokens: count("prompt_tokens"), completion_tokens: count("completion_tokens") };
    let finish_reason = choice["finish_reason"].as_str().map(str::to_owned);
    let text = message["content"].as_str().unwrap_or_default();
    let failed = |kind, message: &str| Meaning::Failed(Failure { kind, message: shortened(message), usage });
    let reason = finish_reason.as_deref().unwrap_or_default();
    if let Some(refusal) = message["refusal"].as_str().filter(|refusal| !refusal.is_empty()) {
        return failed(FailureKind::Refusal, refusal);
    }
    if reason == "content_filter" {
        return failed(FailureKind::ContentFilter, "the judgment was held back by a filter");
    }
    // If log-probs are the verdict, only one token is requested.
    if reason == "length" && settings.top_logprobs == 0 {
        let limit = settings.max_tokens;
        return failed(FailureKind::CutOff, &format!("cut off at {limit} tokens before its end; raise max_tokens"));
    }
    if text.trim().is_empty() {
        return failed(FailureKind::Empty, &format!("no text (finish_reason {reason:?})"));
    }
    let name = |key: &str| value[key].as_str().filter(|name| !name.is_empty());
    let answered_by = [name("model"), name("system_fingerprint")].into_iter().flatten().collect::<Vec<_>>().join(" ");
    let first_token = (settings.top_logprobs > 0).then(|| first_token(choice)).flatten();
    Meaning::Reply(Reply { text: text.to_owned(), finish_reason, usage, answered_by, first_token })
}

/// The most likely first tokens, if the server provides them.
fn first_token(choice: &Value) -> Option<Vec<(String, f64)>> {
    let tokens = choice.pointer("/logprobs/content/0/top_logprobs")?.as_array()?;
    let token = |value: &Value| Some((value["token"].as_str()?.to_owned(), value["logprob"].as_f64()?));
    tokens.iter().map(token).collect::<Option<Vec<_>>>().filter(|tokens| !tokens.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(top_logprobs: u32) -> Settings {
        Settings { temperature: 0.0, top_logprobs, max_tokens: 10 }
    }

    fn meaning(status: u16, body: &Value) -> Meaning {
        read(status, None, None, &body.to_string(), &settings(0), ServerParameters::FIRST)
    }

    fn kind(meaning: Meaning) -> Result<FailureKind, Meaning> {
        match meaning {
            Meaning::Failed(failure) | Meaning::Again(failure, _) => Ok(failure.kind),
            other => Err(other),
        }
    }

    fn choice(content: Value, finish_reason: &str) -> Value {
        json!({"model": "gpt", "system_fingerprint": "fp", "usage": {"prompt_tokens": 3, "completion_tokens": 4},
            "choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}]})
    }

    #[test]
    fn a_reply_is_text_that_ended() {
        let Meaning::Reply(reply) = meaning(200, &choice(json!("[[7]]"), "stop")) else { panic!() };
        assert_eq!((reply.text.as_str(), reply.answered_by.as_str()), ("[[7]]", "gpt fp"));
        assert_eq!(reply.usage, Usage { prompt_tokens: 3, completion_tokens: 4 });
        for (content, reason, expected) in [
            (json!("[[7"), "length", FailureKind::CutOff),
            (json!(null), "stop", FailureKind::Empty),
            (json!("  \n"), "stop", FailureKind::Empty),
            (json!(""), "content_filter", FailureKind::ContentFilter),
        ] {
            let Meaning::Failed(failure) = meaning(200, &choice(content, reason)) else { panic!() };
            assert_eq!((failure.kind, failure.usage.completion_tokens), (expected, 4), "what was paid is counted");
        }
        let mut refusal = choice(json!(null), "stop");
        refusal["choices"][0]["message"]["refusal"] = json!("I can't.");
        assert_eq!(kind(meaning(200, &refusal)), Ok(FailureKind::Refusal));
    }

    #[test]
    fn one_token_with_log_probs_is_whole() {
        let mut value = choice(json!("m"), "length");
        value["choices"][0]["logprobs"] = json!({"content": [{"token": "m", "top_logprobs": [{"token": "m", "logprob": -0.1}, {"token": "M", "logprob": -9999.0}]}]});
        let read = |value: &Value| read(200, None, None, &value.to_string(), &settings(5), ServerParameters::FIRST);
        let Meaning::Reply(reply) = read(&value) else { panic!() };
        assert_eq!(reply.first_token, Some(vec![("m".to_owned(), -0.1), ("M".to_owned(), -9999.0)]));
        let Meaning::Reply(reply) = read(&choice(json!("m"), "length")) else { panic!() };
        assert_eq!(reply.first_token, None);
    }

    #[test]
    fn statuses_say_whether_to_try_again() {
        let error = |code: Value| json!({"error": {"message": "no", "code": code}});
        for (status, expected) in [
            (408, FailureKind::Timeout),
            (409, FailureKind::ServerError),
            (429, FailureKind::RateLimited),
            (500, FailureKind::ServerError),
            (503, FailureKind::ServerError),
        ] {
            assert!(
                matches!(meaning(status, &error(json!(status))), Meaning::Again(failure, _) if failure.kind == expected)
            );
        }
        for status in [301, 401, 403, 404] {
            assert!(matches!(meaning(status, &error(json!(null))), Meaning::Fatal(_)), "{status}");
        }
        assert!(matches!(meaning(429, &error(json!("insufficient_quota"))), Meaning::Fatal(_)));
        assert_eq!(kind(meaning(400, &error(json!("content_filter")))), Ok(FailureKind::ContentFilter));
        assert_eq!(kind(meaning(400, &error(json!("context_length_exceeded")))), Ok(FailureKind::TooLong));
        assert_eq!(kind(meaning(422, &json!({"detail": [{"loc": "x"}]}))), Ok(FailureKind::BadRequest));
        let html =
            |status| read(status, None, None, "<html>bad\ngateway</html>", &settings(0), ServerParameters::FIRST);
        assert!(matches!(html(200), Meaning::Again(failure, _) if failure.kind == FailureKind::NotAnAnswer));
        assert!(matches!(html(502), Meaning::Again(failure, _) if failure.message == "<html>bad gateway</html>"));
        let told = |retry| read(500, None, retry, "{}", &settings(0), ServerParameters::FIRST);
        assert!(matches!(told(Some(false)), Meaning::Failed(_)) && matches!(told(None), Meaning::Again(..)));
    }

    #[test]
    fn a_refused_parameter_is_left_out_once() {
        let tokens = json!({"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use \
            'max_completion_tokens' instead.", "param": "max_tokens", "code": "unsupported_parameter"}});
        let Meaning::Without(dialect) = meaning(400, &tokens) else { panic!() };
        assert!(dialect.completion_tokens && !dialect.own_temperature);
        let again = read(400, None, None, &tokens.to_string(), &settings(0), dialect);
        assert_eq!(kind(again), Ok(FailureKind::BadRequest));
        let temperature = json!({"error": {"message": "Unsupported value: only the default (1) value is supported.", "param": "temperature"}});
        let Meaning::Without(dialect) = meaning(400, &temperature) else { panic!() };
        assert!(dialect.own_temperature);
        let logprobs = json!({"detail": "logprobs are not supported"});
        let meaning = read(400, None, None, &logprobs.to_string(), &settings(5), ServerParameters::FIRST);
        assert!(matches!(meaning, Meaning::Without(dialect) if dialect.no_logprobs));
        assert!(kind(read(400, None, None, &logprobs.to_string(), &settings(0), ServerParameters::FIRST)).is_ok());
    }
}
