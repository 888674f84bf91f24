//! Text to tokens with their lines. Knows comments and literals; knows nothing of instructions.

use super::super::error::{Fault, Outcome, Rule};

/// Texts longer than this are refused: a hundred times the largest kernel of this repository.
pub const MAX_BYTES: usize = 16 << 20;
/// The longest name.
const MAX_WORD: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'t> {
    /// An identifier: `mov`, `%r1`, `$loop`, `_`.
    Word(&'t str),
    /// A directive or modifier without its dot: `f32`, `shared::cta`, `L2::128B`.
    Dot(&'t str),
    /// An integer, negative ones as the parser finds their sign.
    Int(u64),
    /// `0f3F800000`.
    Float32(u32),
    /// `0d3FF0000000000000`.
    Float64(u64),
    /// `1.5`, `2e-3`; also the operand of `.version`.
    Decimal(&'t str),
    Text(&'t str),
    Punct(u8),
}

pub struct Lexed<'t> {
    pub token: Token<'t>,
    pub line: u32,
}

pub fn lex(text: &str) -> Outcome<Vec<Lexed<'_>>> {
    if text.len() > MAX_BYTES {
        let why = format!(
            "the text has {} bytes, the limit is {MAX_BYTES}",
            text.len()
        );
        return Err(Fault::new(Rule::Syntax, why));
    }
    let mut lexer = Lexer {
        text,
        at: 0,
        line: 1,
    };
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next()? {
        tokens.push(token);
    }
    Ok(tokens)
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
    line: u32,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%')
}

impl<'t> Lexer<'t> {
    fn peek(&self, ahead: usize) -> u8 {
        self.text
            .as_bytes()
            .get(self.at + ahead)
            .copied()
            .unwrap_or(0)
    }

    fn fault(&self, why: impl Into<String>) -> Box<Fault> {
        Fault::at(Rule::Syntax, self.line, why)
    }

    /// Moves over bytes that `keep` accepts and returns them. Only ASCII bytes are ever accepted, so slices stay on
    /// character boundaries.
    fn take(&mut self, keep: impl Fn(u8) -> bool) -> &'t str {
        let start = self.at;
        while self.at < self.text.len() && keep(self.peek(0)) {
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    fn skip_blank(&mut self) -> Outcome {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'\n', _) => {
                    self.line = self.line.saturating_add(1);
                    self.at += 1;
                }
                (b' ' | b'\t' | b'\r', _) => self.at += 1,
                (b'/', b'/') => {
                    let rest = &self.text[self.at..];
                    self.at += rest.find('\n').unwrap_or(rest.len());
                }
                (b'/', b'*') => {
                    let rest = &self.text[self.at + 2..];
                    let Some(end) = rest.find("*/") else {
                        return Err(self.fault("a comment begins with /* and never ends"));
                    };
                    let breaks = rest[..end].bytes().filter(|&b| b == b'\n').count();
                    self.line = self.line.saturating_add(breaks as u32);
                    self.at += end + 4;
                }
                _ => return Ok(()),
            }
        }
    }

    fn next(&mut self) -> Outcome<Option<Lexed<'t>>> {
        self.skip_blank()?;
        if self.at == self.text.len() {
            return Ok(None);
        }
        let line = self.line;
        let token = match self.peek(0) {
            b'.' => self.dot()?,
            b'"' => self.string()?,
            b if b.is_ascii_digit() => self.number()?,
            b if is_word(b) => {
                let word = self.take(is_word);
                if word.len() > MAX_WORD {
                    return Err(self.fault(format!("a name is longer than {MAX_WORD} characters")));
                }
                Token::Word(word)
            }
            b if b.is_ascii_punctuation() => {
                self.at += 1;
                Token::Punct(b)
            }
            _ => {
                let found = self.text[self.at..].chars().next().unwrap_or(' ');
                return Err(self.fault(format!("{found:?} has no meaning in PTX")));
            }
        };
        Ok(Some(Lexed { token, line }))
    }

    fn dot(&mut self) -> Outcome<Token<'t>> {
        self.at += 1;
        let start = self.at;
        loop {
            if self.take(is_word).is_empty() {
                return Err(self.fault("a dot must be followed by the name of a modifier"));
            }
            if self.peek(0) != b':' || self.peek(1) != b':' {
                return Ok(Token::Dot(&self.text[start..self.at]));
            }
            self.at += 2;
        }
    }

    fn string(&mut self) -> Outcome<Token<'t>> {
        let rest = &self.text[self.at + 1..];
        match rest.find(['"', '\n']) {
            Some(end) if rest.as_bytes()[end] == b'"' => {
                self.at += end + 2;
                Ok(Token::Text(&rest[..end]))
            }
            _ => Err(self.fault("a string begins with \" and does not end on its line")),
        }
    }

    fn number(&mut self) -> Outcome<Token<'t>> {
        let start = self.at;
        let digits = self.take(|b| b.is_ascii_alphanumeric());
        let prefix = digits.get(..2).unwrap_or("");
        let bits = |digits: &str, count: usize| {
            u64::from_str_radix(digits, 16)
                .ok()
                .filter(|_| digits.len() == count)
        };
        let integer = |digits: &str, radix| u64::from_str_radix(digits, radix).ok();
        let token = match prefix {
            "0f" | "0F" => bits(&digits[2..], 8).map(|b| Token::Float32(b as u32)),
            "0d" | "0D" => bits(&digits[2..], 16).map(Token::Float64),
            "0x" | "0X" => integer(digits[2..].trim_end_matches('U'), 16).map(Token::Int),
            "0b" | "0B" => integer(digits[2..].trim_end_matches('U'), 2).map(Token::Int),
            _ if self.peek(0) == b'.' || digits.contains(['e', 'E']) => return self.decimal(start),
            _ => {
                let digits = digits.trim_end_matches('U');
                let octal = digits.len() > 1 && digits.starts_with('0');
                integer(digits, if octal { 8 } else { 10 }).map(Token::Int)
            }
        };
        token.ok_or_else(|| self.fault(format!("{digits:?} is not a number")))
    }

    fn decimal(&mut self, start: usize) -> Outcome<Token<'t>> {
        if self.peek(0) == b'.' {
            self.at += 1;
            self.take(|b| b.is_ascii_alphanumeric());
        }
        if self.text[start..self.at].ends_with(['e', 'E']) && matches!(self.peek(0), b'+' | b'-') {
            self.at += 1;
            self.take(|b| b.is_ascii_digit());
        }
        Ok(Token::Decimal(&self.text[start..self.at]))
    }
}
