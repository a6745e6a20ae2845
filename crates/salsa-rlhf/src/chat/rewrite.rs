//! Rewrites a template with its operators as filters, so that they behave as in Python and consume fuel.
//!
//! MiniJinja evaluates `%`, `~`, `in`, comparisons, subscripts and slices itself, partly unlike Python and without a
//! limit on their work. The template is parsed and written again with the filters of [`super::operators`] in their
//! place, with white space resolved, and with each tag on its original line, so that errors name the right line.

mod expressions;

use std::fmt::Write;

use minijinja::machinery::{Span, ast, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind, Value};

use ast::{Expr, Stmt};

/// Returns the rewritten template, to be parsed with [`syntax`].
pub(super) fn rewrite(source: &str, name: &str, read: SyntaxConfig) -> Result<String, Error> {
    let Stmt::Template(template) = parse(source, name, read)? else {
        return Err(Error::new(ErrorKind::SyntaxError, "the source is no template"));
    };
    let mut writer = Writer { out: String::with_capacity(source.len() * 2), line: 1 };
    writer.block(&template.children)?;
    Ok(writer.out)
}

/// The syntax of the rewritten template: without trimming.
pub(super) fn syntax() -> SyntaxConfig {
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    syntax.expect("the default delimiters are valid")
}

struct Writer {
    out: String,
    line: u32,
}

impl Writer {
    fn push(&mut self, text: &str) {
        self.out.push_str(text);
    }

    /// Adds line breaks up to the line of `span`, inside a tag.
    fn reach(&mut self, span: Span) {
        while self.line < u32::from(span.start_line) {
            self.out.push('\n');
            self.line += 1;
        }
    }

    fn block(&mut self, statements: &[Stmt<'_>]) -> Result<(), Error> {
        statements.iter().try_for_each(|statement| self.statement(statement))
    }

    /// Writes a tag that starts with `keyword`.
    fn tag(&mut self, keyword: &str, rest: impl FnOnce(&mut Writer) -> Result<(), Error>) -> Result<(), Error> {
        self.push("{% ");
        self.push(keyword);
        self.push(" ");
        rest(self)?;
        self.push(" %}");
        Ok(())
    }

    fn end(&mut self, keyword: &str) {
        let _ = write!(self.out, "{{% {keyword} %}}");
    }

    fn statement(&mut self, statement: &Stmt<'_>) -> Result<(), Error> {
        match statement {
            Stmt::Template(template) => self.block(&template.children),
            Stmt::EmitRaw(raw) => {
                self.raw(raw.raw);
                Ok(())
            }
            Stmt::EmitExpr(emit) => {
                self.push("{{ ");
                self.expression(&emit.expr)?;
                self.push(" }}");
                Ok(())
            }
            Stmt::ForLoop(each) => self.for_loop(each),
            Stmt::IfCond(condition) => {
                self.condition("if", condition)?;
                self.end("endif");
                Ok(())
            }
            Stmt::WithBlock(with) => {
                self.tag("with", |w| {
                    for (index, (target, value)) in with.assignments.iter().enumerate() {
                        w.push(if index > 0 { ", " } else { "" });
                        w.target(target)?;
                        w.push(" = ");
                        w.expression(value)?;
                    }
                    Ok(())
                })?;
                self.block(&with.body)?;
                self.end("endwith");
                Ok(())
            }
            Stmt::Set(set) => self.tag("set", |w| {
                w.target(&set.target)?;
                w.push(" = ");
                match set.target {
                    Expr::List(_) => w.filtered(&set.expr, "__unpacked"),
                    // Called blocks capture only the names that they read: this makes `ns` of `ns.x = 1` one of them.
                    Expr::GetAttr(ref attribute) => w.applied(&set.expr, "__assigned", &[Some(&attribute.expr)]),
                    _ => w.expression(&set.expr),
                }
            }),
            Stmt::SetBlock(set) => {
                self.tag("set", |w| {
                    w.target(&set.target)?;
                    let Some(filter) = &set.filter else { return Ok(()) };
                    w.push(" | ");
                    w.expression(filter)
                })?;
                self.block(&set.body)?;
                self.end("endset");
                Ok(())
            }
            Stmt::AutoEscape(escape) => {
                self.tag("autoescape", |w| w.expression(&escape.enabled))?;
                self.block(&escape.body)?;
                self.end("endautoescape");
                Ok(())
            }
            Stmt::FilterBlock(filter) => {
                self.tag("filter", |w| w.expression(&filter.filter))?;
                self.block(&filter.body)?;
                self.end("endfilter");
                Ok(())
            }
            Stmt::Macro(defined) => {
                self.tag("macro", |w| {
                    w.push(defined.name);
                    w.parameters(&defined.args, &defined.defaults)
                })?;
                self.block(&defined.body)?;
                self.end("endmacro");
                Ok(())
            }
            Stmt::CallBlock(call) => {
                self.tag("call", |w| {
                    w.parameters(&call.macro_decl.args, &call.macro_decl.defaults)?;
                    w.push(" ");
                    w.call(&call.call)
                })?;
                self.block(&call.macro_decl.body)?;
                self.end("endcall");
                Ok(())
            }
            Stmt::Continue(_) => self.tag("continue", |_| Ok(())),
            Stmt::Break(_) => self.tag("break", |_| Ok(())),
            Stmt::Block(block) => {
                self.tag("block", |w| {
                    w.push(block.name);
                    w.push(if block.required { " required" } else { "" });
                    Ok(())
                })?;
                self.block(&block.body)?;
                self.end("endblock");
                Ok(())
            }
            Stmt::Do(_) => Err(unknown("do")),
            Stmt::Include(_) => Err(unknown("include")),
            Stmt::Import(_) | Stmt::FromImport(_) => Err(unknown("import")),
            Stmt::Extends(_) => Err(unknown("extends")),
        }
    }

    /// Writes text between tags.
    fn raw(&mut self, text: &str) {
        if text.contains("{{") || text.contains("{%") || text.contains("{#") || text.ends_with('{') {
            self.push("{{ ");
            self.constant(&Value::from(text));
            self.push(" }}");
        } else {
            self.push(text);
            self.line += u32::try_from(text.matches('\n').count()).unwrap_or(u32::MAX);
        }
    }

    fn for_loop(&mut self, each: &ast::ForLoop<'_>) -> Result<(), Error> {
        self.tag("for", |w| {
            w.target(&each.target)?;
            w.push(" in ");
            w.filtered(&each.iter, "__iterated")?;
            if let Some(filter) = &each.filter_expr {
                w.push(" if ");
                w.operand(filter)?;
            }
            w.push(if each.recursive { " recursive" } else { "" });
            Ok(())
        })?;
        self.block(&each.body)?;
        if !each.else_body.is_empty() {
            self.end("else");
            self.block(&each.else_body)?;
        }
        self.end("endfor");
        Ok(())
    }

    /// Keeps `elif`, since an `if` inside `else` would nest.
    fn condition(&mut self, keyword: &str, condition: &ast::IfCond<'_>) -> Result<(), Error> {
        self.tag(keyword, |w| w.operand(&condition.expr))?;
        self.block(&condition.true_body)?;
        match condition.false_body.as_slice() {
            [] => Ok(()),
            [Stmt::IfCond(next)] => self.condition("elif", next),
            body => {
                self.end("else");
                self.block(body)
            }
        }
    }

    fn parameters(&mut self, names: &[Expr<'_>], defaults: &[Expr<'_>]) -> Result<(), Error> {
        self.push("(");
        let plain = names.len() - defaults.len();
        for (index, name) in names.iter().enumerate() {
            self.push(if index > 0 { ", " } else { "" });
            self.expression(name)?;
            if index >= plain {
                self.push("=");
                self.expression(&defaults[index - plain])?;
            }
        }
        self.push(")");
        Ok(())
    }

    /// Writes the target of an assignment: a name, `namespace.name`, or several in parentheses.
    fn target(&mut self, target: &Expr<'_>) -> Result<(), Error> {
        match target {
            Expr::List(list) => {
                self.push("(");
                for item in &list.items {
                    self.target(item)?;
                    self.push(", ");
                }
                self.push(")");
                Ok(())
            }
            Expr::GetAttr(attribute) => {
                self.target(&attribute.expr)?;
                self.push(".");
                self.push(attribute.name);
                Ok(())
            }
            other => self.expression(other),
        }
    }
}

/// The error for tags that transformers' environment does not support, or that need files.
fn unknown(tag: &str) -> Error {
    Error::new(ErrorKind::SyntaxError, format!("{{% {tag} %}} is not known in chat templates"))
}
