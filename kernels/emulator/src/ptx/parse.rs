//! Text into steps.

use std::collections::HashMap;

use super::{Binary, Compare, Kernel, Refused, Register, Source, Special, Step, Type, What};

type Parsed<T> = Result<T, String>;

/// The kernel being read.
#[derive(Default)]
struct Open {
    name: String,
    parameters: Vec<(String, u8)>,
    registers: HashMap<String, Register>,
    labels: HashMap<String, u32>,
    /// Steps that jump, and where to.
    jumps: Vec<(usize, u32, String)>,
    code: Vec<Step>,
    /// Braces that are open.
    depth: u32,
}

pub(super) fn module(text: &str) -> Result<Vec<Kernel>, Refused> {
    let mut kernels = Vec::new();
    let mut open: Option<Open> = None;
    for (number, line) in (1u32..).zip(text.lines()) {
        let line = line.split("//").next().unwrap_or_default().trim();
        let refused = |what: String| Refused { line: number, what };
        let Some(kernel) = &mut open else {
            open = outside(line).map_err(refused)?;
            continue;
        };
        if line == "}" && kernel.depth == 1 {
            kernels.extend(open.take().map(close).transpose()?);
        } else if kernel.depth > 0 {
            body(kernel, number, line).map_err(refused)?;
        } else {
            head(kernel, line).map_err(refused)?;
        }
    }
    match open {
        Some(kernel) => Err(Refused { line: 0, what: format!("the text ends inside {}", kernel.name) }),
        None => Ok(kernels),
    }
}

/// A line between kernels: directives, or the beginning of one.
fn outside(line: &str) -> Parsed<Option<Open>> {
    if let Some(rest) = line.strip_prefix(".visible .entry ") {
        let name = rest.trim_end_matches(['(', ')', ' ']).to_owned();
        return Ok(Some(Open { name, ..Open::default() }));
    }
    let known = [".version", ".target", ".address_size"];
    if line.is_empty() || known.iter().any(|directive| line.starts_with(directive)) {
        return Ok(None);
    }
    Err(format!("unknown: {line}"))
}

fn head(kernel: &mut Open, line: &str) -> Parsed<()> {
    match line {
        "" | ")" => {}
        "{" => kernel.depth = 1,
        _ => {
            let words: Vec<&str> = line.trim_end_matches(',').split_whitespace().collect();
            let [".param", kind, name] = words[..] else { return Err(format!("unknown parameter: {line}")) };
            let kind = type_of(kind.trim_start_matches('.'))?;
            kernel.parameters.push((name.to_owned(), kind.bytes));
        }
    }
    Ok(())
}

fn body(kernel: &mut Open, number: u32, line: &str) -> Parsed<()> {
    match line {
        "" => return Ok(()),
        "{" => {
            kernel.depth += 1;
            return Ok(());
        }
        "}" => {
            kernel.depth -= 1;
            return Ok(());
        }
        _ => {}
    }
    if let Some(registers) = line.strip_prefix(".reg ") {
        return declare(kernel, registers);
    }
    if let Some(label) = line.strip_suffix(':') {
        kernel.labels.insert(label.to_owned(), kernel.code.len() as u32);
        return Ok(());
    }
    let line = line.strip_suffix(';').ok_or_else(|| format!("no end: {line}"))?;
    let (guard, line) = match line.strip_prefix('@') {
        Some(guarded) => {
            let (name, rest) = guarded.split_once(char::is_whitespace).ok_or("a guard of nothing")?;
            let plain = name.trim_start_matches('!');
            (Some((register(kernel, plain)?, plain != name)), rest.trim())
        }
        None => (None, line),
    };
    let (operation, operands) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let operands = split(operands);
    let what = instruction(kernel, number, operation, &operands)?;
    kernel.code.push(Step { line: number, guard, what });
    Ok(())
}

/// `.b64 %rd<49>;`: registers %rd0 to %rd48; `.b64 %lhs;`: one. A block in braces may declare a name again.
fn declare(kernel: &mut Open, line: &str) -> Parsed<()> {
    let wrong = || format!("unknown registers: {line}");
    let (_, name) = line.split_once(char::is_whitespace).ok_or_else(wrong)?;
    let name = name.trim().trim_end_matches(';');
    let names: Vec<String> = match name.trim_end_matches('>').split_once('<') {
        Some((prefix, count)) => {
            let count: u16 = count.parse().map_err(|_| wrong())?;
            (0..count).map(|index| format!("{prefix}{index}")).collect()
        }
        None => vec![name.to_owned()],
    };
    for name in names {
        let place = Register::try_from(kernel.registers.len()).map_err(|_| "too many registers")?;
        kernel.registers.entry(name).or_insert(place);
    }
    Ok(())
}

/// Operands at the commas that are outside braces.
fn split(operands: &str) -> Vec<String> {
    let (mut list, mut depth) = (vec![String::new()], 0);
    for c in operands.chars() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                list.push(String::new());
                continue;
            }
            c if c.is_whitespace() => continue,
            _ => {}
        }
        list.last_mut().expect("it begins with one").push(c);
    }
    list.retain(|operand| !operand.is_empty());
    list
}

fn register(kernel: &Open, name: &str) -> Parsed<Register> {
    kernel.registers.get(name).copied().ok_or_else(|| format!("no register {name}"))
}

fn source(kernel: &Open, name: &str) -> Parsed<Source> {
    if let Some((which, axis)) = name.split_once('.') {
        let axis = ["x", "y", "z"].iter().position(|a| *a == axis).ok_or("no such axis")? as u8;
        return Ok(Source::Special(match which {
            "%tid" => Special::Thread(axis),
            "%ntid" => Special::Threads(axis),
            "%ctaid" => Special::Block(axis),
            "%nctaid" => Special::Blocks(axis),
            _ => return Err(format!("no special register {name}")),
        }));
    }
    if name.starts_with('%') {
        return register(kernel, name).map(Source::Register);
    }
    let value = name.parse::<i64>().map(|v| v as u64).or_else(|_| name.parse::<u64>());
    value.map(Source::Value).map_err(|_| format!("no value: {name}"))
}

fn type_of(name: &str) -> Parsed<Type> {
    // A predicate is 0 or 1; no load or store takes one, which `access` sees to.
    if name == "pred" {
        return Ok(Type { bytes: 1, signed: false });
    }
    let (kind, bits) = name.split_at_checked(1).ok_or("no type")?;
    let bytes = match bits {
        "8" => 1,
        "16" => 2,
        "32" => 4,
        "64" => 8,
        _ => return Err(format!("unknown type {name}")),
    };
    match kind {
        "u" | "b" => Ok(Type { bytes, signed: false }),
        "s" => Ok(Type { bytes, signed: true }),
        _ => Err(format!("unknown type {name}")),
    }
}

fn instruction(kernel: &mut Open, line: u32, operation: &str, operands: &[String]) -> Parsed<What> {
    let parts: Vec<&str> = operation.split('.').collect();
    let unknown = || format!("unknown instruction: {operation} {}", operands.join(", "));
    let operand = |index: usize| operands.get(index).map(String::as_str).ok_or_else(unknown);
    match parts[..] {
        ["ret"] => Ok(What::Return),
        ["bra"] | ["bra", "uni"] => {
            kernel.jumps.push((kernel.code.len(), line, operand(0)?.to_owned()));
            Ok(What::Branch { to: 0 })
        }
        ["ld", "param", kind] => {
            let kind = type_of(kind)?;
            let name = operand(1)?.trim_matches(['[', ']']);
            let index = kernel.parameters.iter().position(|(n, bytes)| n == name && *bytes == kind.bytes);
            let index = index.ok_or_else(|| format!("no parameter {name} of this type"))? as u16;
            Ok(What::LoadParameter { to: register(kernel, operand(0)?)?, index })
        }
        ["ld" | "st", ..] => access(kernel, &parts, operands).map_err(|why| format!("{}: {why}", unknown())),
        // Of no type we know, so of none of the registers below.
        _ if type_of(parts.last().copied().unwrap_or_default()).is_err() => Err(unknown()),
        _ => {
            let to = register(kernel, operand(0)?)?;
            let a = source(kernel, operand(1)?)?;
            let b = operands.get(2).map(|name| source(kernel, name)).transpose()?;
            register_only(&parts, to, a, b, operands.get(3).map(|n| register(kernel, n)).transpose()?)
                .ok_or_else(unknown)
        }
    }
}

/// Instructions that touch registers only.
fn register_only(
    parts: &[&str],
    to: Register,
    a: Source,
    b: Option<Source>,
    by: Option<Register>,
) -> Option<What> {
    let kind = type_of(parts.last()?).ok();
    match (parts, b) {
        (["mov", _], None) => Some(What::Move { to, from: a, kind: kind? }),
        (["cvta", "to", "global", _] | ["cvta", "global", _], None) => {
            Some(What::Move { to, from: a, kind: kind? })
        }
        (["cvt", new, _], None) => Some(What::Convert { to, from: a, old: kind?, new: type_of(new).ok()? }),
        (["selp", _], Some(b)) => Some(What::Select { to, a, b, by: by? }),
        (["setp", how, _], Some(b)) => {
            let how = match *how {
                "eq" => Compare::Equal,
                "ne" => Compare::NotEqual,
                "lt" => Compare::Less,
                "le" => Compare::LessEqual,
                "gt" => Compare::Greater,
                "ge" => Compare::GreaterEqual,
                _ => return None,
            };
            Some(What::Set { to, a, b, how, kind: kind? })
        }
        (_, Some(b)) => {
            let how = match parts[..parts.len() - 1] {
                ["add"] => Binary::Add,
                ["sub"] => Binary::Subtract,
                ["mul", "lo"] => Binary::Multiply,
                ["mul", "wide"] => Binary::MultiplyWide,
                ["min"] => Binary::Minimum,
                ["max"] => Binary::Maximum,
                ["and"] => Binary::And,
                ["or"] => Binary::Or,
                ["xor"] => Binary::Xor,
                ["shl"] => Binary::ShiftLeft,
                ["shr"] => Binary::ShiftRight,
                _ => return None,
            };
            Some(What::Compute { to, a, b, how, kind: kind? })
        }
        _ => None,
    }
}

/// Loads and stores of global memory: `ld.global.v4.u32 {%r1, ..}, [%rd1+16]`.
fn access(kernel: &Open, parts: &[&str], operands: &[String]) -> Parsed<What> {
    let [first, second] = operands else { return Err("two operands".into()) };
    let middle: Vec<&str> = parts[1..parts.len() - 1].iter().copied().filter(|p| *p != "global").collect();
    let count = match middle[..] {
        [] => 1,
        ["v2"] => 2,
        ["v4"] => 4,
        _ => return Err(format!("unknown: {middle:?}")),
    };
    let kind = match *parts.last().expect("it has parts") {
        "pred" => return Err("predicates are not in memory".into()),
        name => type_of(name)?,
    };
    let (values, at) = if parts[0] == "ld" { (first, second) } else { (second, first) };
    let names: Vec<&str> = values.trim_matches(['{', '}']).split(',').collect();
    if names.len() != count {
        return Err(format!("{} values, not {count}", names.len()));
    }
    let at = at.trim_matches(['[', ']']);
    let (base, offset) = at.split_once('+').unwrap_or((at, "0"));
    let offset = offset.parse().map_err(|_| format!("no offset: {offset}"))?;
    let at = source(kernel, base)?;
    if parts[0] == "ld" {
        let to = names.iter().map(|name| register(kernel, name)).collect::<Parsed<_>>()?;
        Ok(What::Load { to, at, offset, kind })
    } else {
        let from = names.iter().map(|name| source(kernel, name)).collect::<Parsed<_>>()?;
        Ok(What::Store { from, at, offset, kind })
    }
}

fn close(mut open: Open) -> Result<Kernel, Refused> {
    for (step, line, label) in open.jumps {
        let target = open.labels.get(&label).copied();
        let target = target.ok_or_else(|| Refused { line, what: format!("no label {label}") })?;
        open.code[step].what = What::Branch { to: target };
    }
    Ok(Kernel {
        name: open.name,
        parameters: open.parameters.into_iter().map(|(_, bytes)| bytes).collect(),
        registers: open.registers.len(),
        code: open.code,
    })
}
