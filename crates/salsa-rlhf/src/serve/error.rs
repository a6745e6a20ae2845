//! What a client is told when a request is not served, in OpenAI's form.
use hyper::StatusCode;
use serde_json::{Value, json};

/// A request that is not served.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    /// The status of the answer.
    pub status: StatusCode,
    /// What kind of error it is, in OpenAI's words.
    pub kind: &'static str,
    /// What is wrong and what to do.
    pub message: String,
    /// The parameter that is wrong, as `messages[2].content`.
    pub param: Option<String>,
    /// OpenAI's code, where it has one.
    pub code: Option<&'static str>,
    /// Seconds after which the same request may succeed.
    pub retry_after: Option<u64>,
}

/// The kind of a mistake in a request.
const INVALID: &str = "invalid_request_error";

impl ApiError {
    /// A request that is wrong as a whole.
    pub(crate) fn malformed(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, kind: INVALID, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// A parameter that is wrong.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.into()), ..ApiError::malformed(StatusCode::BAD_REQUEST, message) }
    }

    /// A parameter that this server does not know or cannot honour.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError { code: Some("unsupported_parameter"), ..ApiError::invalid(param, message) }
    }

    /// A prompt for which the model has no room.
    pub(crate) fn too_long(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        ApiError { code: Some("context_length_exceeded"), ..ApiError::invalid(param, message) }
    }

    /// A model that is not served.
    pub(crate) fn no_model(message: impl Into<String>) -> ApiError {
        let error = ApiError::malformed(StatusCode::NOT_FOUND, message);
        ApiError { param: Some("model".to_owned()), code: Some("model_not_found"), ..error }
    }

    /// A missing or wrong key.
    pub(crate) fn unauthorized() -> ApiError {
        let message = "the API key is missing or wrong; send it as Authorization: Bearer KEY";
        let error = ApiError::malformed(StatusCode::UNAUTHORIZED, message);
        ApiError { kind: "authentication_error", code: Some("invalid_api_key"), ..error }
    }

    /// Too many requests wait already.
    pub(crate) fn busy(message: impl Into<String>) -> ApiError {
        let error = ApiError::malformed(StatusCode::TOO_MANY_REQUESTS, message);
        ApiError { kind: "rate_limit_error", code: Some("rate_limit_exceeded"), retry_after: Some(1), ..error }
    }

    /// The server is about to end.
    pub(crate) fn stopping() -> ApiError {
        let error = ApiError::malformed(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping");
        ApiError { kind: "server_error", retry_after: Some(5), ..error }
    }

    /// A failure that is not the client's.
    pub(crate) fn internal(message: impl Into<String>) -> ApiError {
        let error = ApiError::malformed(StatusCode::INTERNAL_SERVER_ERROR, message);
        ApiError { kind: "server_error", ..error }
    }

    /// `{"error": {"message": …, "type": …, "param": …, "code": …}}`
    pub(crate) fn body(&self) -> Value {
        let ApiError { kind, message, param, code, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }
}
