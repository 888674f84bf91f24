//! Tokens to a [`Module`]: directives, declarations, labels, instructions and operands. Resolves register names, since
//! scopes end with the text; leaves the meaning of opcodes to decoding.

use std::collections::HashMap;

use super::super::error::{Fault, Outcome, Rule};
use super::lexer::{Lexed, Token, lex};
use super::types::Type;
use super::{
    Entry, Instruction, MAX_BLOCKS, MAX_REGISTERS, MAX_VARIABLE_BYTES, Module, Operand, Param,
    Register, Space, Variable,
};

/// Parses a whole text.
///
/// # Errors
/// The first thing that is not PTX, with its line.
pub fn parse(text: &str) -> Outcome<Module<'_>> {
    let tokens = lex(text)?;
    let mut parser = Parser {
        tokens,
        at: 0,
        variable_bytes: 0,
    };
    parser.module()
}

struct Parser<'t> {
    tokens: Vec<Lexed<'t>>,
    at: usize,
    variable_bytes: u64,
}

/// Register names by scope, innermost last.
type Scopes<'t> = Vec<HashMap<&'t str, Names>>;

/// What `.reg .b32 %r<8>, %x;` declares under one name.
#[derive(Clone, Copy)]
enum Names {
    One(Register),
    /// `%r0`, `%r1`, … : first register and count.
    Numbered(Register, u32),
}

impl<'t> Parser<'t> {
    fn line(&self) -> u32 {
        let last = self.tokens.last().map_or(1, |t| t.line);
        self.tokens.get(self.at).map_or(last, |t| t.line)
    }

    fn fault<T>(&self, why: impl Into<String>) -> Outcome<T> {
        Err(Fault::at(Rule::Syntax, self.line(), why))
    }

    fn unsupported<T>(&self, why: impl Into<String>) -> Outcome<T> {
        Err(Fault::at(Rule::Unsupported, self.line(), why))
    }

    fn peek(&self) -> Option<Token<'t>> {
        self.tokens.get(self.at).map(|t| t.token)
    }

    fn next(&mut self) -> Outcome<Token<'t>> {
        let Some(token) = self.peek() else {
            return self.fault("the text ends in the middle of a statement");
        };
        self.at += 1;
        Ok(token)
    }

    fn accept(&mut self, punct: u8) -> bool {
        let found = self.peek() == Some(Token::Punct(punct));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, punct: u8) -> Outcome {
        if self.accept(punct) {
            return Ok(());
        }
        let found = self.describe();
        self.fault(format!(
            "expected {:?}, found {found}",
            char::from(punct).to_string()
        ))
    }

    fn describe(&self) -> String {
        match self.peek() {
            None => "the end of the text".to_string(),
            Some(Token::Word(word)) => format!("{word:?}"),
            Some(Token::Dot(word)) => format!("\".{word}\""),
            Some(Token::Punct(p)) => format!("{:?}", char::from(p).to_string()),
            Some(Token::Text(text)) => format!("the string {text:?}"),
            Some(Token::Decimal(text)) => text.to_string(),
            Some(Token::Int(value)) => value.to_string(),
            Some(Token::Float32(_) | Token::Float64(_)) => "a float".to_string(),
        }
    }

    fn accept_dot(&mut self, name: &str) -> bool {
        let found = self.peek() == Some(Token::Dot(name));
        self.at += usize::from(found);
        found
    }

    fn word(&mut self, what: &str) -> Outcome<&'t str> {
        match self.peek() {
            Some(Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => {
                let found = self.describe();
                self.fault(format!("expected {what}, found {found}"))
            }
        }
    }

    fn int(&mut self, what: &str) -> Outcome<u64> {
        match self.peek() {
            Some(Token::Int(value)) => {
                self.at += 1;
                Ok(value)
            }
            _ => {
                let found = self.describe();
                self.fault(format!("expected {what}, found {found}"))
            }
        }
    }

    fn int32(&mut self, what: &str) -> Outcome<u32> {
        let value = self.int(what)?;
        u32::try_from(value).or_else(|_| self.fault(format!("{what} {value} is too large")))
    }

    fn module(&mut self) -> Outcome<Module<'t>> {
        if !self.accept_dot("version") {
            return self.fault("the text must begin with .version");
        }
        let version = match self.next()? {
            Token::Decimal(text) => text
                .split_once('.')
                .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?))),
            _ => None,
        };
        let Some(version) = version else {
            return self.fault(".version needs a number such as 7.8");
        };
        let mut module = Module {
            version,
            target: Vec::new(),
            variables: Vec::new(),
            entries: Vec::new(),
        };
        while let Some(token) = self.peek() {
            let Token::Dot(directive) = token else {
                let found = self.describe();
                return self.fault(format!("expected a directive, found {found}"));
            };
            match directive {
                "target" => {
                    self.at += 1;
                    module.target.push(self.word("an arch such as sm_80")?);
                    while self.accept(b',') {
                        module.target.push(self.word("an arch or an option")?);
                    }
                }
                "address_size" => {
                    self.at += 1;
                    if self.int("64")? != 64 {
                        return self.unsupported("only .address_size 64 is supported");
                    }
                }
                "visible" | "weak" => self.at += 1,
                "extern" | "global" | "const" | "shared" => {
                    let dynamic = self.accept_dot("extern");
                    self.variables(dynamic, &mut module.variables)?;
                }
                "entry" => {
                    self.at += 1;
                    let entry = self.entry()?;
                    module.entries.push(entry);
                }
                "file" | "loc" => self.skip_line(),
                "func" | "alias" => {
                    return self.unsupported("functions are not supported: inline them");
                }
                other => return self.fault(format!("no directive .{other} is known here")),
            }
        }
        if module.target.is_empty() {
            return self.fault("the text has no .target");
        }
        Ok(module)
    }

    /// `.loc` and `.file` end with their line.
    fn skip_line(&mut self) {
        let line = self.line();
        while self.tokens.get(self.at).is_some_and(|t| t.line == line) {
            self.at += 1;
        }
    }

    fn align(&mut self) -> Outcome<Option<u32>> {
        if !self.accept_dot("align") {
            return Ok(None);
        }
        let align = self.int32("an alignment")?;
        if !align.is_power_of_two() || align > 1 << 16 {
            return self.fault(format!(
                "alignment {align} is not a power of two up to 65536"
            ));
        }
        Ok(Some(align))
    }

    fn kind(&mut self) -> Outcome<Type> {
        if let Some(Token::Dot(name)) = self.peek()
            && let Some(kind) = Type::named(name)
        {
            self.at += 1;
            return Ok(kind);
        }
        let found = self.describe();
        self.fault(format!("expected a type such as .b32, found {found}"))
    }

    /// `.shared .align 16 .b8 a[1024], b[16];`
    fn variables(&mut self, dynamic: bool, into: &mut Vec<Variable<'t>>) -> Outcome {
        let space = match self.next()? {
            Token::Dot("global") => Space::Global,
            Token::Dot("const") => Space::Const,
            Token::Dot("shared") => Space::Shared,
            Token::Dot("local") => Space::Local,
            _ => {
                self.at -= 1;
                let found = self.describe();
                return self.fault(format!("expected a state space, found {found}"));
            }
        };
        let align = self.align()?;
        let kind = self.kind()?;
        if kind == Type::Pred {
            return self.fault("a variable cannot be a predicate");
        }
        let align = align.unwrap_or(kind.bytes());
        loop {
            let line = self.line();
            let name = self.word("the variable's name")?;
            let mut count: Option<u64> = Some(1);
            let mut open = false;
            while self.accept(b'[') {
                if self.accept(b']') {
                    open = true;
                    continue;
                }
                let extent = self.int("an extent")?;
                count = count.and_then(|c| c.checked_mul(extent));
                self.expect(b']')?;
            }
            let mut contents = Vec::new();
            if self.accept(b'=') {
                self.initialiser(kind, &mut contents)?;
            }
            let bytes = count.and_then(|c| c.checked_mul(u64::from(kind.bytes())));
            let bytes = match bytes {
                Some(bytes) if open => (contents.len() as u64).max(if dynamic { 0 } else { bytes }),
                Some(bytes) => bytes,
                None => u64::MAX,
            };
            self.variable_bytes = self.variable_bytes.saturating_add(bytes);
            if self.variable_bytes > MAX_VARIABLE_BYTES {
                return self.fault(format!(
                    "variables take more than {MAX_VARIABLE_BYTES} bytes"
                ));
            }
            if contents.len() as u64 > bytes {
                return self.fault(format!("{name} is initialised past its end"));
            }
            if dynamic && !(open && space == Space::Shared) {
                return self.unsupported("only `.extern .shared name[]` may be external");
            }
            into.push(Variable {
                name,
                space,
                dynamic,
                align,
                bytes,
                contents,
                line,
            });
            if !self.accept(b',') {
                return self.expect(b';');
            }
        }
    }

    /// `{1, 2, {3, 4}}` or one value; nested braces only group.
    fn initialiser(&mut self, kind: Type, contents: &mut Vec<u8>) -> Outcome {
        let mut depth = 0u32;
        loop {
            if self.accept(b'{') {
                depth += 1;
                continue;
            }
            let negative = self.accept(b'-');
            let value = match (self.next()?, kind) {
                (Token::Int(value), _) if !kind.is_float() => {
                    if negative {
                        value.wrapping_neg()
                    } else {
                        value
                    }
                }
                (Token::Float32(bits), Type::F32) => {
                    u64::from(bits) ^ if negative { 1 << 31 } else { 0 }
                }
                (Token::Float64(bits), Type::F64) => bits ^ if negative { 1 << 63 } else { 0 },
                _ => {
                    self.at -= 1;
                    let found = self.describe();
                    return self.fault(format!("{found} cannot initialise a variable of its type"));
                }
            };
            contents.extend_from_slice(&value.to_le_bytes()[..kind.bytes().min(8) as usize]);
            loop {
                if depth == 0 {
                    return Ok(());
                }
                if self.accept(b'}') {
                    depth -= 1;
                } else {
                    self.expect(b',')?;
                    break;
                }
            }
        }
    }

    fn entry(&mut self) -> Outcome<Entry<'t>> {
        let line = self.line();
        let mut entry = Entry {
            name: self.word("the entry's name")?,
            line,
            ..Entry::default()
        };
        if self.accept(b'(') && !self.accept(b')') {
            loop {
                let param = self.param()?;
                entry.params.push(param);
                if !self.accept(b',') {
                    break;
                }
            }
            self.expect(b')')?;
        }
        while let Some(Token::Dot(directive)) = self.peek() {
            self.at += 1;
            match directive {
                "maxntid" => entry.max_threads = Some(self.extents()?),
                "reqntid" => entry.required_threads = Some(self.extents()?),
                "reqnctapercluster" => entry.cluster = Some(self.extents()?),
                "minnctapersm" | "maxnreg" => {
                    self.int(directive)?;
                    entry.register_cap = true;
                }
                "maxnctapersm" | "maxclusterrank" => {
                    self.int(directive)?;
                }
                "explicitcluster" => {}
                "pragma" => self.pragma()?,
                other => {
                    self.at -= 1;
                    return self.fault(format!("no directive .{other} is known for an entry"));
                }
            }
        }
        self.expect(b'{')?;
        self.body(&mut entry)?;
        Ok(entry)
    }

    /// `x[, y[, z]]`, ones where left out.
    fn extents(&mut self) -> Outcome<[u32; 3]> {
        let mut extents = [1; 3];
        for extent in &mut extents {
            *extent = self.int32("an extent")?;
            if !self.accept(b',') {
                break;
            }
        }
        Ok(extents)
    }

    fn pragma(&mut self) -> Outcome {
        let Token::Text(_) = self.next()? else {
            self.at -= 1;
            return self.fault(".pragma needs a string");
        };
        self.expect(b';')
    }

    fn param(&mut self) -> Outcome<Param<'t>> {
        if !self.accept_dot("param") {
            let found = self.describe();
            return self.fault(format!("expected .param, found {found}"));
        }
        let align = self.align()?;
        let kind = self.kind()?;
        if kind == Type::Pred {
            return self.fault("a parameter cannot be a predicate");
        }
        if self.accept_dot("ptr") {
            while matches!(
                self.peek(),
                Some(Token::Dot("global" | "const" | "shared" | "local"))
            ) {
                self.at += 1;
            }
            self.align()?;
        }
        let name = self.word("the parameter's name")?;
        let mut array = None;
        if self.accept(b'[') {
            array = Some(self.int32("the parameter's extent")?);
            self.expect(b']')?;
        }
        Ok(Param {
            name,
            kind,
            align: align.unwrap_or(kind.bytes()),
            array,
        })
    }

    /// Everything up to the entry's closing brace.
    fn body(&mut self, entry: &mut Entry<'t>) -> Outcome {
        let mut scopes: Scopes<'t> = vec![HashMap::new()];
        loop {
            let Some(token) = self.peek() else {
                return self.fault(format!("the body of {} has no closing brace", entry.name));
            };
            match token {
                Token::Punct(b'{') => {
                    self.at += 1;
                    if scopes.len() == MAX_BLOCKS {
                        return self.fault(format!("more than {MAX_BLOCKS} blocks in one another"));
                    }
                    scopes.push(HashMap::new());
                }
                Token::Punct(b'}') => {
                    self.at += 1;
                    scopes.pop();
                    if scopes.is_empty() {
                        return Ok(());
                    }
                }
                Token::Punct(b';') => self.at += 1,
                Token::Dot("reg") => self.registers(entry, &mut scopes)?,
                Token::Dot("shared" | "local") => self.variables(false, &mut entry.variables)?,
                Token::Dot("pragma") => {
                    self.at += 1;
                    self.pragma()?;
                }
                Token::Dot("loc" | "file") => self.skip_line(),
                Token::Word(label)
                    if self.tokens.get(self.at + 1).map(|t| t.token)
                        == Some(Token::Punct(b':')) =>
                {
                    if entry.labels.insert(label, entry.body.len()).is_some() {
                        return self.fault(format!("label {label} stands twice"));
                    }
                    self.at += 2;
                }
                Token::Word(_) | Token::Punct(b'@') => {
                    let instruction = self.instruction(&scopes)?;
                    entry.body.push(instruction);
                }
                _ => {
                    let found = self.describe();
                    return self.fault(format!("expected an instruction, found {found}"));
                }
            }
        }
    }

    /// `.reg .b32 %r<8>, %x;`
    fn registers(&mut self, entry: &mut Entry<'t>, scopes: &mut Scopes<'t>) -> Outcome {
        self.at += 1;
        let kind = self.kind()?;
        loop {
            let name = self.word("a register's name")?;
            let first = entry.registers.len() as Register;
            let names = if self.accept(b'<') {
                let count = self.int32("a count of registers")?;
                self.expect(b'>')?;
                Names::Numbered(first, count)
            } else {
                Names::One(first)
            };
            let count = match names {
                Names::One(_) => 1,
                Names::Numbered(_, count) => count as usize,
            };
            if entry.registers.len() + count > MAX_REGISTERS {
                return self.fault(format!("more than {MAX_REGISTERS} registers"));
            }
            entry.registers.resize(entry.registers.len() + count, kind);
            if let Some(scope) = scopes.last_mut()
                && scope.insert(name, names).is_some()
            {
                return self.fault(format!("register {name} is declared twice"));
            }
            if !self.accept(b',') {
                return self.expect(b';');
            }
        }
    }

    fn instruction(&mut self, scopes: &Scopes<'t>) -> Outcome<Instruction<'t>> {
        let mut guard = None;
        if self.accept(b'@') {
            let negated = self.accept(b'!');
            let name = self.word("a predicate")?;
            let Some(register) = find(scopes, name) else {
                return self.fault(format!("{name} is not a declared register"));
            };
            guard = Some((register, negated));
        }
        let line = self.line();
        let opcode = self.word("an opcode")?;
        let mut modifiers = Vec::new();
        while let Some(Token::Dot(modifier)) = self.peek() {
            modifiers.push(modifier);
            self.at += 1;
        }
        let mut operands = Vec::new();
        if !self.accept(b';') {
            loop {
                let operand = self.operand(scopes, true)?;
                operands.push(operand);
                if self.accept(b';') {
                    break;
                }
                self.expect(b',')?;
            }
        }
        Ok(Instruction {
            line,
            guard,
            opcode,
            modifiers,
            operands,
        })
    }

    /// One operand; composite ones (`{}` and `[]`) only where `outer`, so that nesting is bounded.
    fn operand(&mut self, scopes: &Scopes<'t>, outer: bool) -> Outcome<Operand<'t>> {
        let operand = match self.next()? {
            Token::Word("_") => Operand::Sink,
            Token::Word(name) => self.name(scopes, name),
            Token::Int(value) => Operand::Int(value),
            Token::Float32(bits) => Operand::Float32(bits),
            Token::Float64(bits) => Operand::Float64(bits),
            Token::Decimal(text) => match text.parse::<f64>() {
                Ok(value) => Operand::Float64(value.to_bits()),
                Err(_) => return self.fault(format!("{text:?} is not a number")),
            },
            Token::Punct(b'-') => match self.next()? {
                Token::Int(value) => Operand::Int(value.wrapping_neg()),
                Token::Float32(bits) => Operand::Float32(bits ^ 1 << 31),
                Token::Float64(bits) => Operand::Float64(bits ^ 1 << 63),
                Token::Decimal(text) => match text.parse::<f64>() {
                    Ok(value) => Operand::Float64((-value).to_bits()),
                    Err(_) => return self.fault(format!("{text:?} is not a number")),
                },
                _ => return self.fault("a minus must be followed by a number"),
            },
            Token::Punct(b'!') => {
                let name = self.word("a predicate")?;
                match find(scopes, name) {
                    Some(register) => Operand::Not(register),
                    None => return self.fault(format!("{name} is not a declared register")),
                }
            }
            Token::Punct(b'{') if outer => Operand::Vector(self.list(scopes)?),
            Token::Punct(b'[') if outer => self.address(scopes)?,
            _ => {
                self.at -= 1;
                let found = self.describe();
                return self.fault(format!("expected an operand, found {found}"));
            }
        };
        if outer && self.accept(b'|') {
            let second = self.operand(scopes, false)?;
            return Ok(Operand::Pair(Box::new(operand), Box::new(second)));
        }
        Ok(operand)
    }

    fn name(&mut self, scopes: &Scopes<'t>, name: &'t str) -> Operand<'t> {
        if let Some(register) = find(scopes, name) {
            return Operand::Register(register);
        }
        match self.peek() {
            Some(Token::Dot(component)) => {
                self.at += 1;
                Operand::Name(name, Some(component))
            }
            _ => Operand::Name(name, None),
        }
    }

    /// The rest of `{a, b}`.
    fn list(&mut self, scopes: &Scopes<'t>) -> Outcome<Vec<Operand<'t>>> {
        let mut items = Vec::new();
        loop {
            items.push(self.operand(scopes, false)?);
            if self.accept(b'}') {
                return Ok(items);
            }
            self.expect(b',')?;
        }
    }

    /// The rest of `[base + offset, {coordinates}]`.
    fn address(&mut self, scopes: &Scopes<'t>) -> Outcome<Operand<'t>> {
        let mut base = self.operand(scopes, false)?;
        let mut offset = 0i64;
        if let Operand::Int(value) = base {
            base = Operand::Int(0);
            offset = value as i64;
        }
        loop {
            let negative = match self.peek() {
                Some(Token::Punct(b'+')) => false,
                Some(Token::Punct(b'-')) => true,
                _ => break,
            };
            self.at += 1;
            let negative = negative ^ self.accept(b'-');
            let value = self.int("an offset")? as i64;
            let value = if negative {
                value.wrapping_neg()
            } else {
                value
            };
            offset = offset.wrapping_add(value);
        }
        let mut coordinates = Vec::new();
        if self.accept(b',') {
            self.expect(b'{')?;
            coordinates = self.list(scopes)?;
        }
        self.expect(b']')?;
        Ok(Operand::Address {
            base: Box::new(base),
            offset,
            coordinates,
        })
    }
}

/// The register that `name` means in the innermost scope that knows it.
fn find(scopes: &Scopes<'_>, name: &str) -> Option<Register> {
    let digits = name.len() - name.bytes().rev().take_while(u8::is_ascii_digit).count();
    // `%r01` is no name of `%r<8>`.
    let number = |text: &str| {
        let plain = text == "0" || !text.starts_with('0');
        plain.then(|| text.parse::<u32>().ok()).flatten()
    };
    scopes.iter().rev().find_map(|scope| {
        if let Some(Names::One(register)) = scope.get(name) {
            return Some(*register);
        }
        // `%r10` may be the tenth of `%r<16>` or the first of `%r1<4>`.
        (digits..name.len()).find_map(|split| match scope.get(&name[..split]) {
            Some(Names::Numbered(first, count)) => number(&name[split..])
                .filter(|n| n < count)
                .map(|n| first + n),
            _ => None,
        })
    })
}
