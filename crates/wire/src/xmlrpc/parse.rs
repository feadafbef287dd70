//! From XML. Nothing is trusted: depth and shape are checked while reading, and nothing is kept that is not used.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use quick_xml::{Reader, events::Event};

use super::{Call, Fault, MAX_DEPTH, Value, code};

type Result<T> = std::result::Result<T, Fault>;

/// Reads a `methodCall`. The fault says what is wrong with it.
pub fn parse_call(bytes: &[u8]) -> Result<Call> {
    let mut parser = Parser::new(text(bytes)?);
    parser.open("methodCall")?;
    parser.open("methodName")?;
    let method = parser.text_to_end()?.trim().to_owned();
    if method.is_empty() || method.chars().count() > 255 {
        return Err(shape("`methodName` has 1 to 255 characters"));
    }
    let mut params = vec![];
    if let Some(name) = parser.child()? {
        parser.is(&name, "params")?;
        while let Some(name) = parser.child()? {
            parser.is(&name, "param")?;
            params.push(parser.only_value()?);
        }
        parser.end()?;
    }
    parser.finish()?;
    Ok(Call { method, params })
}

/// Reads a `methodResponse`: the one result, or the fault it tells of. The outer error says why it cannot be read.
pub fn parse_response(bytes: &[u8]) -> Result<Result<Value>> {
    let mut parser = Parser::new(text(bytes)?);
    parser.open("methodResponse")?;
    let outcome = match parser.child()?.as_deref() {
        Some("params") => {
            parser.open("param")?;
            let value = parser.only_value()?;
            parser.end()?;
            Ok(value)
        }
        Some("fault") => Err(parser.only_value().and_then(into_fault)?),
        _ => return Err(shape("a `methodResponse` holds `params` or `fault`")),
    };
    parser.end()?;
    parser.finish()?;
    Ok(outcome)
}

fn into_fault(value: Value) -> Result<Fault> {
    if let Value::Struct(mut members) = value
        && let (Some(Value::Int(code)), Some(Value::String(string))) =
            (members.remove("faultCode"), members.remove("faultString"))
        && let Ok(code) = i32::try_from(code)
    {
        return Ok(Fault { code, string });
    }
    Err(shape("a `fault` holds `faultCode` and `faultString`"))
}

fn shape(what: impl Into<String>) -> Fault {
    Fault::new(code::INVALID_REQUEST, what)
}

fn syntax(what: impl Into<String>) -> Fault {
    Fault::new(code::NOT_WELL_FORMED, what)
}

/// The document as text: UTF-8, without characters that XML 1.0 excludes.
fn text(bytes: &[u8]) -> Result<&str> {
    let text = std::str::from_utf8(bytes).map_err(|_| {
        let head = String::from_utf8_lossy(bytes.get(..256).unwrap_or(bytes)).to_ascii_lowercase();
        let declared = head.contains("encoding") && !head.contains("utf-8") && !head.contains("utf8");
        if declared || bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
            encoding()
        } else {
            Fault::new(code::INVALID_CHARACTER, "the document is not UTF-8")
        }
    })?;
    match text.chars().find(|c| !is_xml(*c)) {
        Some(c) => Err(Fault::new(code::INVALID_CHARACTER, format!("XML has no character U+{:04X}", u32::from(c)))),
        None => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
    }
}

fn encoding() -> Fault {
    Fault::new(code::UNSUPPORTED_ENCODING, "only UTF-8 is accepted")
}

/// Whether XML 1.0 allows this character.
pub(super) fn is_xml(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

enum Token {
    Start(String),
    Text(String),
    End,
    Nothing,
}

struct Parser<'a> {
    reader: Reader<&'a [u8]>,
    /// Values open around the current place.
    depth: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        let mut reader = Reader::from_str(text);
        let config = reader.config_mut();
        config.expand_empty_elements = true;
        config.check_end_names = true;
        Self { reader, depth: 0 }
    }

    fn token(&mut self) -> Result<Token> {
        loop {
            return Ok(match self.reader.read_event().map_err(|error| syntax(error.to_string()))? {
                Event::Start(start) => Token::Start(start.name().as_ref().to_owned()),
                Event::End(_) => Token::End,
                Event::Text(text) => Token::Text(text.xml10_content().into_owned()),
                Event::CData(text) => Token::Text(text.xml10_content().into_owned()),
                Event::GeneralRef(reference) => Token::Text(resolve(&reference)?.to_string()),
                Event::Decl(declaration) => match declaration.encoding() {
                    Some(Ok(name))
                        if !["utf-8", "utf8", "us-ascii"].iter().any(|known| name.eq_ignore_ascii_case(known)) =>
                    {
                        return Err(encoding());
                    }
                    Some(Err(error)) => return Err(syntax(error.to_string())),
                    _ => continue,
                },
                Event::DocType(_) => return Err(syntax("document types are not accepted")),
                Event::Comment(_) | Event::PI(_) => continue,
                Event::Empty(_) => return Err(syntax("an empty element was not expanded")),
                Event::Eof => Token::Nothing,
            });
        }
    }

    /// The next child's name, or `None` at the end of the current element. Blank text between elements is skipped.
    fn child(&mut self) -> Result<Option<String>> {
        loop {
            match self.token()? {
                Token::Start(name) => return Ok(Some(name)),
                Token::End => return Ok(None),
                Token::Text(text) if blank(&text) => {}
                Token::Text(_) => return Err(shape("there is text between elements")),
                Token::Nothing => return Err(syntax("the document ends within an element")),
            }
        }
    }

    fn is(&self, found: &str, wanted: &str) -> Result<()> {
        if found == wanted {
            return Ok(());
        }
        Err(shape(format!("`{}` stands where `{wanted}` belongs", shorten(found))))
    }

    /// The next child must be this.
    fn open(&mut self, name: &str) -> Result<()> {
        loop {
            match self.token()? {
                Token::Start(found) => return self.is(&found, name),
                Token::Text(text) if blank(&text) => {}
                Token::Nothing => return Err(syntax("the document ends too early")),
                _ => return Err(shape(format!("`{name}` is missing"))),
            }
        }
    }

    /// The current element must end here.
    fn end(&mut self) -> Result<()> {
        match self.child()? {
            None => Ok(()),
            Some(name) => Err(shape(format!("`{}` is one too many", shorten(&name)))),
        }
    }

    /// Nothing may follow.
    fn finish(&mut self) -> Result<()> {
        loop {
            match self.token()? {
                Token::Nothing => return Ok(()),
                Token::Text(text) if blank(&text) => {}
                Token::End => {}
                _ => return Err(syntax("something follows the document")),
            }
        }
    }

    /// The text up to the current element's end; elements within it are refused.
    fn text_to_end(&mut self) -> Result<String> {
        let mut all = String::new();
        loop {
            match self.token()? {
                Token::Text(text) => all.push_str(&text),
                Token::End => return Ok(all),
                Token::Start(name) => return Err(shape(format!("`{}` stands where text belongs", shorten(&name)))),
                Token::Nothing => return Err(syntax("the document ends within an element")),
            }
        }
    }

    /// The current element holds one `value` and ends.
    fn only_value(&mut self) -> Result<Value> {
        self.open("value")?;
        let value = self.value()?;
        self.end()?;
        Ok(value)
    }

    /// What stands in a `value`, up to its end.
    fn value(&mut self) -> Result<Value> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(shape(format!("values are nested deeper than {MAX_DEPTH}")));
        }
        let mut text = String::new();
        let value = loop {
            match self.token()? {
                Token::Text(part) => text.push_str(&part),
                // Without a type it is a string, with all its blanks.
                Token::End => break Value::String(text),
                Token::Start(name) if blank(&text) => {
                    let value = self.typed(&name)?;
                    self.end()?;
                    break value;
                }
                Token::Start(_) => return Err(shape("there is text before a value's type")),
                Token::Nothing => return Err(syntax("the document ends within a value")),
            }
        };
        self.depth -= 1;
        Ok(value)
    }

    /// What stands in an element that names a type, up to its end.
    fn typed(&mut self, name: &str) -> Result<Value> {
        match name.strip_prefix("ex:").unwrap_or(name) {
            "string" => Ok(Value::String(self.text_to_end()?)),
            "int" | "i4" => {
                let number = self.number(name)?;
                i32::try_from(number)
                    .map(|number| Value::Int(number.into()))
                    .map_err(|_| shape(format!("{number} is outside `{name}`; send it as `i8` or as a string")))
            }
            "i8" | "i1" | "i2" => self.number(name).map(Value::Int),
            "boolean" => match self.text_to_end()?.trim() {
                "0" => Ok(Value::Boolean(false)),
                "1" => Ok(Value::Boolean(true)),
                other => Err(shape(format!("`{}` is not a `boolean`: 0 or 1", shorten(other)))),
            },
            "double" | "float" => {
                let text = self.text_to_end()?;
                text.trim()
                    .parse::<f64>()
                    .ok()
                    .filter(|number| number.is_finite())
                    .map(Value::Double)
                    .ok_or_else(|| shape(format!("`{}` is not a `double`", shorten(text.trim()))))
            }
            "dateTime.iso8601" => {
                let text = self.text_to_end()?;
                let text = text.trim();
                if is_date_time(text) {
                    Ok(Value::DateTime(text.to_owned()))
                } else {
                    Err(shape(format!("`{}` is not of the form 20260228T23:59:59", shorten(text))))
                }
            }
            "base64" => {
                let mut text = self.text_to_end()?;
                text.retain(|c| !c.is_ascii_whitespace());
                STANDARD.decode(&text).map(Value::Base64).map_err(|error| shape(format!("invalid `base64`: {error}")))
            }
            "nil" => {
                if blank(&self.text_to_end()?) {
                    Ok(Value::Nil)
                } else {
                    Err(shape("`nil` is empty"))
                }
            }
            "array" => self.array(),
            "struct" => self.members(),
            _ => Err(shape(format!("there is no type `{}`", shorten(name)))),
        }
    }

    fn number(&mut self, name: &str) -> Result<i64> {
        let text = self.text_to_end()?;
        text.trim().parse().map_err(|_| shape(format!("`{}` is not an `{name}`", shorten(text.trim()))))
    }

    fn array(&mut self) -> Result<Value> {
        self.open("data")?;
        let mut values = vec![];
        while let Some(name) = self.child()? {
            self.is(&name, "value")?;
            values.push(self.value()?);
        }
        self.end()?;
        Ok(Value::Array(values))
    }

    fn members(&mut self) -> Result<Value> {
        let mut members = BTreeMap::new();
        while let Some(name) = self.child()? {
            self.is(&name, "member")?;
            self.open("name")?;
            let name = self.text_to_end()?;
            let value = self.only_value()?;
            let shown = shorten(&name);
            if members.insert(name, value).is_some() {
                return Err(shape(format!("the member `{shown}` comes twice")));
            }
        }
        Ok(Value::Struct(members))
    }
}

/// `20260228T23:59:59`, with real digits in all places; whether there is such a day is for others to say.
fn is_date_time(text: &str) -> bool {
    text.len() == 17
        && text.bytes().enumerate().all(|(place, byte)| match place {
            8 => byte == b'T',
            11 | 14 => byte == b':',
            _ => byte.is_ascii_digit(),
        })
}

fn resolve(reference: &quick_xml::events::BytesRef<'_>) -> Result<char> {
    match reference.resolve_char_ref() {
        Ok(Some(c)) if is_xml(c) => return Ok(c),
        Ok(Some(c)) => {
            return Err(Fault::new(
                code::INVALID_CHARACTER,
                format!("XML has no character U+{:04X}; send it as `base64`", u32::from(c)),
            ));
        }
        Err(error) => return Err(syntax(error.to_string())),
        Ok(None) => {}
    }
    match reference.xml10_content().as_ref() {
        "lt" => Ok('<'),
        "gt" => Ok('>'),
        "amp" => Ok('&'),
        "apos" => Ok('\''),
        "quot" => Ok('"'),
        other => Err(syntax(format!("there is no entity `{}`", shorten(other)))),
    }
}

fn blank(text: &str) -> bool {
    text.chars().all(|c| matches!(c, ' ' | '\t' | '\r' | '\n'))
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}
