//! Guards for library calls that panic on damaged files instead of returning an error.
use std::any::Any;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    /// Whether this thread is inside a guarded call; a thread-local, since the panic hook takes no such argument.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`. A panic becomes an error with its message, and prints nothing.
///
/// # Errors
/// The message of the panic.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    silence_guarded_panics();
    let outer = IS_GUARDED.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(outer);
    done.map_err(|payload| message_of(&*payload).to_owned())
}

fn silence_guarded_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_GUARDED.get() {
                hook(info);
            }
        }));
    });
}

fn message_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("it cannot be used")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_library_is_an_error() {
        assert_eq!(guarded::<()>(|| panic!("no such {}", "thing")).unwrap_err(), "no such thing");
        assert!(!IS_GUARDED.get());
        let inner = guarded(|| (guarded::<()>(|| panic!("inner")).is_err(), IS_GUARDED.get())).unwrap();
        assert_eq!(inner, (true, true), "a call inside another leaves it guarded");
        assert_eq!(guarded(|| 3).unwrap(), 3);
    }
}
