//! Limits the nesting of a template before it is parsed: the parser and the compiler recurse for every link of a chain
//! such as `1+1+1`, `a.b.c` or `{% elif %}`, and could overflow the stack.

use anyhow::{Result, bail, ensure};
use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;

/// Far above published templates, of which the longest has some 20 KB.
const LONGEST_SOURCE: usize = 1 << 20;

/// Maximum number of names and operators in one tag.
const LONGEST_TAG: usize = 2_000;

/// Maximum number of `elif`s in one template.
const MOST_ELIFS: usize = 500;

/// Rejects templates that could overflow the stack of [`super::environment`]'s thread.
pub(super) fn check(source: &str, syntax: &SyntaxConfig) -> Result<()> {
    ensure!(
        source.len() <= LONGEST_SOURCE,
        "the chat template is not valid: it has {} bytes, at most {LONGEST_SOURCE} are read",
        source.len()
    );
    let (mut in_tag, mut elifs, mut begins) = (0, 0, false);
    // Tokeniser errors are reported by the parser, which stops at the same place.
    for (token, span) in tokenize(source, false, syntax.clone()).map_while(|token| token.ok()) {
        elifs += usize::from(begins && matches!(token, Token::Ident("elif")));
        begins = matches!(token, Token::BlockStart);
        match token {
            Token::VariableStart | Token::BlockStart => in_tag = 0,
            Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Float(_) | Token::Comma | Token::Colon => {}
            _ => in_tag += 1,
        }
        if in_tag > LONGEST_TAG {
            bail!(
                "the chat template is not valid: a tag has more than {LONGEST_TAG} names and operators (template line {}); split it with {{% set %}}",
                span.start_line
            );
        }
        if elifs > MOST_ELIFS {
            bail!(
                "the chat template is not valid: it has more than {MOST_ELIFS} {{% elif %}} (template line {})",
                span.start_line
            );
        }
    }
    Ok(())
}
