//! A template with its operators as filters, so that Python decides what they do and every operator is paid for.
//!
//! MiniJinja evaluates `%`, `~`, `in`, comparisons, subscripts and slices itself, in part otherwise than Python and
//! without a limit on their work. The template is parsed, written again with the filters of [`super::operators`] in their
//! place, white space resolved, and each tag on the line where it was, so that errors name the right line.

use std::fmt::Write;

use minijinja::machinery::{Span, ast, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::methods;
use ast::{BinOpKind, CallArg, CompareOpKind, Expr, Stmt, UnaryOpKind};

/// The template written again, to be read by [`syntax`] without trimming.
pub(super) fn rewrite(source: &str, name: &str, read: SyntaxConfig) -> Result<String, Error> {
    let Stmt::Template(template) = parse(source, name, read)? else {
        return Err(Error::new(ErrorKind::SyntaxError, "the source is no template"));
    };
    let mut writer = Writer { out: String::with_capacity(source.len() * 2), line: 1 };
    writer.block(&template.children)?;
    Ok(writer.out)
}

/// How the written template is read: nothing is trimmed any more.
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

    /// Lines ahead of what was written so far, inside a tag.
    fn reach(&mut self, span: Span) {
        while self.line < u32::from(span.start_line) {
            self.out.push('\n');
            self.line += 1;
        }
    }

    fn block(&mut self, statements: &[Stmt<'_>]) -> Result<(), Error> {
        statements.iter().try_for_each(|statement| self.statement(statement))
    }

    /// A tag, from its keyword on.
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
                    // Blocks that are called know the names that they read, and only these: `ns` of `ns.x = 1` is read too.
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

    /// Text between tags.
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

    /// `elif` stays what it is: as an `if` inside `else` it would nest.
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

    /// What is assigned to: a name, `namespace.name`, or several in parentheses.
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

    fn expression(&mut self, expression: &Expr<'_>) -> Result<(), Error> {
        self.reach(expression.span());
        match expression {
            Expr::Var(variable) => {
                self.push(variable.id);
                Ok(())
            }
            Expr::Const(constant) => {
                self.constant(&constant.value);
                Ok(())
            }
            Expr::List(list) => self.bracketed("[", &list.items, "]"),
            Expr::Tuple(tuple) => match tuple.items.as_slice() {
                [] => {
                    self.push("()");
                    Ok(())
                }
                items => self.bracketed("(", items, ",)"),
            },
            Expr::Map(map) => {
                self.push("{");
                for (key, value) in map.keys.iter().zip(&map.values) {
                    // A list or mapping is no key.
                    match key {
                        Expr::Const(_) => self.expression(key)?,
                        _ => self.filtered(key, "__key")?,
                    }
                    self.push(": ");
                    self.expression(value)?;
                    self.push(", ");
                }
                self.push("}");
                Ok(())
            }
            Expr::GetAttr(attribute) if methods::OF_MAPPINGS.contains(&attribute.name) => {
                let name = format!("__method(\"{}\")", attribute.name);
                self.filtered(&attribute.expr, &name)
            }
            Expr::GetAttr(attribute) => self.attribute(attribute),
            Expr::GetItem(item) => match &item.subscript_expr {
                Expr::Const(key) if key.value.kind() == ValueKind::String => {
                    self.operand(&item.expr)?;
                    self.push("[");
                    self.constant(&key.value);
                    self.push("]");
                    Ok(())
                }
                key => self.applied(&item.expr, "__item", &[Some(key)]),
            },
            Expr::Slice(slice) => {
                let parts = [&slice.start, &slice.stop, &slice.step].map(Option::as_ref);
                self.applied(&slice.expr, "__slice", &parts)
            }
            Expr::Call(call) => self.call(call),
            Expr::Filter(filter) => {
                if let Some(piped) = &filter.expr {
                    self.piped(piped)?;
                    self.push(" | ");
                }
                self.push(filter.name);
                if filter.args.is_empty() { Ok(()) } else { self.arguments(&filter.args) }
            }
            Expr::Test(test) => {
                self.operand(&test.expr)?;
                self.push(" is ");
                self.push(test.name);
                if test.args.is_empty() { Ok(()) } else { self.arguments(&test.args) }
            }
            Expr::UnaryOp(operation) => self.unary(operation),
            Expr::BinOp(operation) => self.binary(operation),
            Expr::Compare(comparison) => self.comparison(comparison),
            Expr::IfExpr(choice) => {
                self.operand(&choice.true_expr)?;
                self.push(" if ");
                self.operand(&choice.test_expr)?;
                let Some(other) = &choice.false_expr else { return Ok(()) };
                self.push(" else ");
                // A chain of choices does not nest.
                if matches!(other, Expr::IfExpr(_)) { self.expression(other) } else { self.operand(other) }
            }
        }
    }

    /// What an operator, a dot, a call or a subscript follows: in parentheses, unless it holds together by itself.
    fn operand(&mut self, expression: &Expr<'_>) -> Result<(), Error> {
        let holds = match expression {
            Expr::Const(constant) => constant.value.kind() != ValueKind::Number,
            Expr::GetItem(item) => {
                matches!(&item.subscript_expr, Expr::Const(key) if key.value.kind() == ValueKind::String)
            }
            Expr::GetAttr(attribute) => !methods::OF_MAPPINGS.contains(&attribute.name),
            Expr::Var(_) | Expr::List(_) | Expr::Tuple(_) | Expr::Map(_) | Expr::Call(_) => true,
            _ => false,
        };
        if holds {
            return self.expression(expression);
        }
        self.push("(");
        self.expression(expression)?;
        self.push(")");
        Ok(())
    }

    /// What a filter follows: another filter holds together too, and a chain of filters does not nest.
    fn piped(&mut self, expression: &Expr<'_>) -> Result<(), Error> {
        if is_written_as_filter(expression) { self.expression(expression) } else { self.operand(expression) }
    }

    fn filtered(&mut self, expression: &Expr<'_>, filter: &str) -> Result<(), Error> {
        self.applied(expression, filter, &[])
    }

    fn applied(&mut self, on: &Expr<'_>, filter: &str, arguments: &[Option<&Expr<'_>>]) -> Result<(), Error> {
        self.piped(on)?;
        self.push(" | ");
        self.push(filter);
        if arguments.is_empty() {
            return Ok(());
        }
        for (index, argument) in arguments.iter().enumerate() {
            self.push(if index > 0 { ", " } else { "(" });
            match argument {
                Some(argument) => self.expression(argument)?,
                None => self.push("none"),
            }
        }
        self.push(")");
        Ok(())
    }

    fn attribute(&mut self, attribute: &ast::GetAttr<'_>) -> Result<(), Error> {
        self.operand(&attribute.expr)?;
        self.push(".");
        self.push(attribute.name);
        Ok(())
    }

    fn call(&mut self, call: &ast::Call<'_>) -> Result<(), Error> {
        match &call.expr {
            Expr::GetAttr(method) => self.attribute(method)?,
            called => self.operand(called)?,
        }
        self.arguments(&call.args)
    }

    fn arguments(&mut self, arguments: &[CallArg<'_>]) -> Result<(), Error> {
        self.push("(");
        for (index, argument) in arguments.iter().enumerate() {
            self.push(if index > 0 { ", " } else { "" });
            let expression = match argument {
                CallArg::Pos(expression) => expression,
                CallArg::Kwarg(name, expression) => {
                    self.push(name);
                    self.push("=");
                    expression
                }
                CallArg::PosSplat(expression) => {
                    self.push("*");
                    expression
                }
                CallArg::KwargSplat(expression) => {
                    self.push("**");
                    expression
                }
            };
            self.expression(expression)?;
        }
        self.push(")");
        Ok(())
    }

    fn bracketed(&mut self, open: &str, items: &[Expr<'_>], close: &str) -> Result<(), Error> {
        self.push(open);
        for (index, item) in items.iter().enumerate() {
            self.push(if index > 0 { ", " } else { "" });
            self.expression(item)?;
        }
        self.push(close);
        Ok(())
    }

    fn unary(&mut self, operation: &ast::UnaryOp<'_>) -> Result<(), Error> {
        match (&operation.op, &operation.expr) {
            (UnaryOpKind::Not, inner) => {
                self.push("not ");
                self.operand(inner)
            }
            (UnaryOpKind::Neg, Expr::Const(constant)) if constant.value.is_number() => {
                self.push("-");
                self.constant(&constant.value);
                Ok(())
            }
            (UnaryOpKind::Neg, inner) => self.filtered(inner, "__negated"),
        }
    }

    fn binary(&mut self, operation: &ast::BinOp<'_>) -> Result<(), Error> {
        let Some(operator) = native(operation.op) else {
            return self.applied(&operation.left, filter_of(operation.op), &[Some(&operation.right)]);
        };
        // These associate to the left: a chain of one operator does not nest.
        match &operation.left {
            Expr::BinOp(left) if native(left.op) == Some(operator) && operator != "**" => {
                self.expression(&operation.left)?;
            }
            left => self.operand(left)?,
        }
        let _ = write!(self.out, " {operator} ");
        self.operand(&operation.right)
    }

    /// `a < b < c`; every operand is evaluated once.
    fn comparison(&mut self, comparison: &ast::Compare<'_>) -> Result<(), Error> {
        self.piped(&comparison.expr)?;
        self.push(" | __compared(");
        for (index, part) in comparison.ops.iter().enumerate() {
            self.push(if index > 0 { ", " } else { "" });
            let operator = match part.op {
                CompareOpKind::Eq => "==",
                CompareOpKind::Ne => "!=",
                CompareOpKind::Lt => "<",
                CompareOpKind::Lte => "<=",
                CompareOpKind::Gt => ">",
                CompareOpKind::Gte => ">=",
                CompareOpKind::In => "in",
                CompareOpKind::NotIn => "not in",
            };
            let _ = write!(self.out, "'{operator}', ");
            self.expression(&part.expr)?;
        }
        self.push(")");
        Ok(())
    }

    fn constant(&mut self, value: &Value) {
        match value.as_str() {
            Some(text) => {
                self.push("\"");
                for c in text.chars() {
                    match c {
                        '"' | '\\' => self.out.extend(['\\', c]),
                        '\n' => self.push("\\n"),
                        '\r' => self.push("\\r"),
                        _ => self.out.push(c),
                    }
                }
                self.push("\"");
            }
            // The largest numbers, which were written with an exponent, have no other name.
            None if value.to_string() == "inf" => self.push("1e999"),
            None if value.is_none() => self.push("none"),
            None => {
                let _ = write!(self.out, "{value}");
            }
        }
    }
}

/// The operators that MiniJinja evaluates as Python does.
fn native(operator: BinOpKind) -> Option<&'static str> {
    match operator {
        BinOpKind::ScAnd => Some("and"),
        BinOpKind::ScOr => Some("or"),
        BinOpKind::Sub => Some("-"),
        BinOpKind::Mul => Some("*"),
        BinOpKind::Div => Some("/"),
        BinOpKind::FloorDiv => Some("//"),
        BinOpKind::Pow => Some("**"),
        _ => None,
    }
}

fn filter_of(operator: BinOpKind) -> &'static str {
    match operator {
        BinOpKind::Eq => "__eq",
        BinOpKind::Ne => "__ne",
        BinOpKind::Lt => "__lt",
        BinOpKind::Lte => "__le",
        BinOpKind::Gt => "__gt",
        BinOpKind::Gte => "__ge",
        BinOpKind::In => "__in",
        BinOpKind::Rem => "__modulo",
        BinOpKind::Concat => "__concat",
        _ => "__add",
    }
}

/// Whether an expression is written as something that ends with a filter.
fn is_written_as_filter(expression: &Expr<'_>) -> bool {
    match expression {
        Expr::Filter(_) | Expr::Slice(_) | Expr::Compare(_) => true,
        Expr::GetAttr(attribute) => methods::OF_MAPPINGS.contains(&attribute.name),
        Expr::GetItem(item) => {
            !matches!(&item.subscript_expr, Expr::Const(key) if key.value.kind() == ValueKind::String)
        }
        Expr::BinOp(operation) => matches!(
            operation.op,
            BinOpKind::Eq
                | BinOpKind::Ne
                | BinOpKind::Lt
                | BinOpKind::Lte
                | BinOpKind::Gt
                | BinOpKind::Gte
                | BinOpKind::In
                | BinOpKind::Rem
                | BinOpKind::Concat
                | BinOpKind::Add
        ),
        _ => false,
    }
}

/// What transformers' environment does not know, or has no files for.
fn unknown(tag: &str) -> Error {
    Error::new(ErrorKind::SyntaxError, format!("{{% {tag} %}} is not known in chat templates"))
}
