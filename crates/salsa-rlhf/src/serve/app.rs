//! State shared by all connections: models, channel to the engine, limits and counters.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::Sender,
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use http_body_util::BodyExt;
use hyper::{Response, StatusCode};
use salsa_engine::Ranking;
use tokio::{
    sync::{mpsc, oneshot},
    task,
};

use super::{
    catalogue::{Catalogue, Served},
    choices::OrderedTokens,
    completion::{Asked, Echo, Form},
    engine::{self, Command, Generation, Pass, Passed, Queue, Request},
    error::ApiError,
    generated::Generated,
    keys::Keys,
    metrics::Metrics,
    readings::Readings,
    reply::{Opening, Reply},
    respond::{self, Body},
    tokens::{TokenLogprobs, Vocabulary},
};

/// Limits on clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Maximum number of bytes of a body.
    pub body: usize,
    /// Maximum number of open connections.
    pub connections: usize,
    /// Time that a client may take to send a request, or to receive a piece of the response.
    pub client: Duration,
    /// Time that running requests may take to finish after a shutdown request.
    pub shutdown: Duration,
}

/// State shared by all connections.
pub(crate) struct App {
    /// The models.
    pub catalogue: Catalogue,
    /// The accepted API keys.
    pub keys: Keys,
    /// Limits on clients.
    pub limits: Limits,
    /// The queue of waiting sequences.
    pub queue: Queue,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The channel to the engine.
    pub engine: Sender<Command>,
    /// Program, instruction set and number type.
    pub fingerprint: String,
    /// Start of the server, in seconds since 1970.
    pub began: u64,
    /// Whether the server is shutting down.
    pub is_stopping: AtomicBool,
    /// Number of reply ids assigned so far.
    pub named: AtomicU64,
}

/// The kind of a reading request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// `POST /score`
    Scores,
    /// `POST /logprobs`
    Logprobs,
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl App {
    /// Answers a request for completions.
    ///
    /// # Errors
    /// If the request cannot be served.
    pub(crate) async fn complete(
        self: Arc<App>,
        form: Form,
        body: Vec<u8>,
        came: Instant,
    ) -> Result<Response<Body>, ApiError> {
        let app = self.clone();
        let read = move || Asked::read(form, &body, &app.catalogue, app.queue.most());
        let asked = join_task(task::spawn_blocking(read).await)?;
        // While prompts are read for `echo`, each takes a place in the queue; afterwards each reply takes one.
        let openings = self.openings(&asked).await?;
        let served = &self.catalogue.models[asked.model];
        let reply = self.reply(&asked, openings, served);
        let generated = self.generate(&asked, served, came)?;
        match asked.parameters.stream {
            Some(_) => Ok(respond::stream(self.clone(), asked.model, reply, generated)),
            None => respond::whole(&self, asked.model, reply, generated).await,
        }
    }

    /// Answers a request for scores or log-probs.
    ///
    /// # Errors
    /// If the request cannot be served.
    pub(crate) async fn read(self: Arc<App>, reading: Reading, body: Vec<u8>) -> Result<Response<Body>, ApiError> {
        let app = self.clone();
        let read = move || match reading {
            Reading::Scores => Readings::scores(&body, &app.catalogue, app.queue.most()),
            Reading::Logprobs => Readings::logprobs(&body, &app.catalogue, app.queue.most()),
        };
        let asked = join_task(task::spawn_blocking(read).await)?;
        let passed = self.pass(asked.model, asked.sequences.clone(), asked.asked).await?;
        Ok(respond::json(StatusCode::OK, &asked.answer(&self.catalogue.models[asked.model], passed)))
    }

    /// Runs forward passes over sequences in the engine.
    async fn pass(&self, model: usize, sequences: Vec<Vec<u32>>, asked: engine::Asked) -> Result<Passed, ApiError> {
        let places = self.places(sequences.len())?;
        let (answer, passed) = oneshot::channel();
        self.send(Command::Pass(Pass { model, sequences, asked, answer, places }))?;
        match passed.await {
            Ok(Ok(passed)) => Ok(passed),
            Ok(Err(message)) => Err(ApiError::internal(&*message)),
            Err(_) => Err(ApiError::internal("the engine has stopped")),
        }
    }

    /// The start of each choice: the prompt with `echo`, else empty.
    async fn openings(&self, asked: &Asked) -> Result<Vec<Opening>, ApiError> {
        if asked.echo == Echo::Nothing {
            return Ok(vec![Opening::default(); asked.choices()]);
        }
        let rankings = match asked.ranked {
            None => vec![Vec::new(); asked.prompts.len()],
            Some(count) => {
                let passed = self.pass(asked.model, asked.prompts.clone(), engine::Asked::Rankings(count)).await?;
                match passed {
                    Passed::Rankings(rankings) => rankings,
                    _ => unreachable!("rankings were asked for"),
                }
            }
        };
        let served = &self.catalogue.models[asked.model];
        let opening = |(tokens, rankings): (&Vec<u32>, &Vec<Ranking>)| opening(served, tokens, rankings, asked.ranked);
        let openings: Vec<Opening> =
            asked.prompts.iter().zip(&rankings).map(opening).collect::<anyhow::Result<_>>().map_err(internal)?;
        let each = asked.parameters.n as usize;
        Ok(openings.iter().flat_map(|opening| std::iter::repeat_n(opening.clone(), each)).collect())
    }

    /// Starts the generation in the engine; none if no token is requested.
    fn generate(&self, asked: &Asked, served: &Served, came: Instant) -> Result<Option<Generated>, ApiError> {
        let count = asked.choices();
        let sampling = asked.sampling(served);
        if sampling.max_new_tokens == 0 {
            return Ok(None);
        }
        let places = self.places(count)?;
        let (sender, events) = mpsc::unbounded_channel();
        let request = Arc::new(Request::new(sampling, asked.ranked, count, sender));
        let generation =
            Generation { model: asked.model, prompts: asked.each_choice(), request: request.clone(), places };
        self.send(Command::Generate(generation))?;
        let choices = OrderedTokens::new(events, request, count);
        Ok(Some(Generated::new(choices, count, &asked.parameters.stop, came, self.metrics.clone())))
    }

    fn places(&self, count: usize) -> Result<Vec<engine::Place>, ApiError> {
        self.queue.enter(count).ok_or_else(|| {
            let (waiting, most) = (self.queue.waiting(), self.queue.most());
            ApiError::busy(format!("{waiting} sequences wait already, and there is room for {most}; try again later"))
        })
    }

    fn send(&self, command: Command) -> Result<(), ApiError> {
        self.engine.send(command).map_err(|_| ApiError::internal("the engine has stopped"))
    }

    fn reply(&self, asked: &Asked, openings: Vec<Opening>, served: &Served) -> Reply {
        let number = self.named.fetch_add(1, Ordering::Relaxed);
        let prefix = if asked.form == Form::Chat { "chatcmpl" } else { "cmpl" };
        Reply {
            form: asked.form,
            id: format!("{prefix}-{:x}-{number:x}", self.began),
            created: now(),
            model: served.name.clone(),
            fingerprint: self.fingerprint.clone(),
            prompt_tokens: asked.prompts.iter().map(Vec::len).sum(),
            has_logprobs: asked.ranked.is_some(),
            streaming: asked.parameters.stream,
            offsets: vec![0; openings.len()],
            openings,
        }
    }
}

/// The echoed prompt of a reply.
fn opening(served: &Served, tokens: &[u32], rankings: &[Ranking], ranked: Option<usize>) -> anyhow::Result<Opening> {
    let encoder = served.encoder.as_ref().expect("requests for text go to models with a tokenizer");
    let text = encoder.decode(tokens)?;
    if ranked.is_none() {
        return Ok(Opening { text, logprobs: Vec::new() });
    }
    let vocabulary = Vocabulary(encoder);
    let rest =
        tokens[1..].iter().zip(rankings).map(|(&token, ranking)| vocabulary.told(token, ranking.logprob, &ranking.top));
    let logprobs: Vec<TokenLogprobs> =
        std::iter::once(vocabulary.first(tokens[0])).chain(rest).collect::<Result<_, _>>()?;
    Ok(Opening { text, logprobs })
}

fn internal(error: anyhow::Error) -> ApiError {
    ApiError::internal(format!("{error:#}"))
}

/// The result of a blocking task; a panic becomes an error.
fn join_task<T>(joined: Result<Result<T, ApiError>, task::JoinError>) -> Result<T, ApiError> {
    joined.unwrap_or_else(|_| Err(ApiError::internal("reading the request failed")))
}

/// Reads the whole body of a request.
///
/// # Errors
/// If it is too large, arrives too slowly or is incomplete.
pub(crate) async fn body_of(body: hyper::body::Incoming, limits: &Limits) -> Result<Vec<u8>, ApiError> {
    let too_large = || {
        let message = format!("the body has more than {} bytes", limits.body);
        ApiError::malformed(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    if hyper::body::Body::size_hint(&body).lower() > limits.body as u64 {
        return Err(too_large());
    }
    let whole = http_body_util::Limited::new(body, limits.body).collect();
    match tokio::time::timeout(limits.client, whole).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes().into()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(ApiError::malformed(StatusCode::BAD_REQUEST, "the body breaks off")),
        Err(_) => Err(ApiError::malformed(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}
