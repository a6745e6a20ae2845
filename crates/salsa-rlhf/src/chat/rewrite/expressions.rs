//! Rewriting of expressions.

use std::fmt::Write;

use minijinja::machinery::ast::{self, BinOpKind, CallArg, CompareOpKind, Expr, UnaryOpKind};
use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::Writer;
use crate::chat::methods;

impl Writer {
    pub(super) fn expression(&mut self, expression: &Expr<'_>) -> Result<(), Error> {
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
                    // Lists and mappings cannot be keys.
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
                // A chain of conditional expressions does not nest.
                if matches!(other, Expr::IfExpr(_)) { self.expression(other) } else { self.operand(other) }
            }
        }
    }

    /// Writes the operand of an operator, a dot, a call or a subscript, in parentheses if needed.
    pub(super) fn operand(&mut self, expression: &Expr<'_>) -> Result<(), Error> {
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

    /// Writes the operand of a filter; a chain of filters does not nest.
    fn piped(&mut self, expression: &Expr<'_>) -> Result<(), Error> {
        if is_written_as_filter(expression) { self.expression(expression) } else { self.operand(expression) }
    }

    pub(super) fn filtered(&mut self, expression: &Expr<'_>, filter: &str) -> Result<(), Error> {
        self.applied(expression, filter, &[])
    }

    pub(super) fn applied(
        &mut self,
        on: &Expr<'_>,
        filter: &str,
        arguments: &[Option<&Expr<'_>>],
    ) -> Result<(), Error> {
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

    pub(super) fn call(&mut self, call: &ast::Call<'_>) -> Result<(), Error> {
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
        // These are left-associative: a chain of one operator does not nest.
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

    pub(super) fn constant(&mut self, value: &Value) {
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
            // The largest numbers, written with an exponent in the source, overflow to infinity.
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

/// Whether an expression is written with a filter at its end.
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
