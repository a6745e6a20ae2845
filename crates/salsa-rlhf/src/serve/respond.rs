//! HTTP responses: JSON, or a stream of events.
use std::{
    collections::VecDeque,
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::{
    Response, StatusCode,
    body::Frame,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER},
};
use serde_json::Value;

use super::{
    app::App,
    error::ApiError,
    generated::{Generated, Piece},
    reply::{Reply, Whole},
};

/// The body of a response.
pub(super) type Body = Either<Full<Bytes>, Events>;

/// A JSON response.
pub(super) fn json(status: StatusCode, value: &Value) -> Response<Body> {
    of_kind(status, "application/json", value.to_string())
}

/// A text response.
pub(super) fn text(kind: &'static str, text: String) -> Response<Body> {
    of_kind(StatusCode::OK, kind, text)
}

/// An error response in OpenAI's form.
pub(super) fn error(error: &ApiError) -> Response<Body> {
    let mut response = json(error.status, &error.body());
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// The response to a method that a path does not support.
pub(super) fn not_allowed(method: &'static str) -> Response<Body> {
    let message = format!("this path takes {method} only");
    let mut response = error(&ApiError::malformed(StatusCode::METHOD_NOT_ALLOWED, message));
    response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static(method));
    response
}

fn of_kind(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(text))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

/// Waits for the whole reply and returns it.
///
/// # Errors
/// If the engine fails.
pub(super) async fn whole(
    app: &App,
    model: usize,
    reply: Reply,
    generated: Option<Generated>,
) -> Result<Response<Body>, ApiError> {
    let served = &app.catalogue.models[model];
    let mut choices = vec![Whole { finish: "length", ..Whole::default() }; reply.openings.len()];
    let Some(mut generated) = generated else { return Ok(json(StatusCode::OK, &reply.whole(choices, 0))) };
    while let Some(piece) = poll_fn(|context| generated.poll_piece(served, context)).await {
        let Piece { choice, logprobs, finish, .. } = piece.map_err(|message| ApiError::internal(&*message))?;
        choices[choice].logprobs.extend(logprobs);
        if let Some(finish) = finish {
            let text = generated.whole(served.encoder()?, choice);
            choices[choice].text = text.map_err(|error| ApiError::internal(format!("{error:#}")))?;
            choices[choice].finish = finish;
        }
    }
    Ok(json(StatusCode::OK, &reply.whole(choices, generated.tokens())))
}

/// Streams the reply as server-sent events.
pub(super) fn stream(app: Arc<App>, model: usize, mut reply: Reply, generated: Option<Generated>) -> Response<Body> {
    let choices = reply.openings.len();
    let mut frames: VecDeque<Bytes> = reply.first_chunks().iter().map(event).collect();
    if generated.is_none() {
        for choice in 0..choices {
            let piece = Piece { choice, text: String::new(), logprobs: Vec::new(), finish: Some("length") };
            frames.extend(reply.chunks(&piece).iter().map(event));
        }
    }
    let events = Events { app, model, reply, generated, frames, is_over: false };
    let mut response = Response::new(Either::Right(events));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-cache"));
    response
}

/// A stream of events. It is dropped when the client disconnects, which cancels the generation.
pub(crate) struct Events {
    app: Arc<App>,
    model: usize,
    reply: Reply,
    generated: Option<Generated>,
    frames: VecDeque<Bytes>,
    is_over: bool,
}

impl Events {
    /// Polls for the next piece and appends its events to `frames`.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let served = &self.app.catalogue.models[self.model];
        let piece = match &mut self.generated {
            Some(generated) => ready!(generated.poll_piece(served, context)),
            None => None,
        };
        match piece {
            Some(Ok(piece)) => self.frames.extend(self.reply.chunks(&piece).iter().map(event)),
            Some(Err(message)) => {
                self.is_over = true;
                self.generated = None;
                self.frames.push_back(event(&ApiError::internal(&*message).body()));
            }
            None => {
                self.is_over = true;
                let drawn = self.generated.as_ref().map_or(0, Generated::tokens);
                self.frames.extend(self.reply.last_chunk(drawn).iter().map(event));
                self.frames.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
            }
        }
        Poll::Ready(())
    }
}

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(frame))));
            }
            if self.is_over {
                return Poll::Ready(None);
            }
            ready!(self.poll_more(context));
        }
    }
}

fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}
