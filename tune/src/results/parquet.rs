//! A table as a Parquet file, which pandas, pyarrow, Polars, DuckDB and Spark read. The format's plainest form, one page a
//! column, without compression or dictionaries: a study's table is small, and the libraries for more weigh more than all
//! the rest of this crate.

use serde_json::Value;

use super::Table;

const MAGIC: &[u8] = b"PAR1";

/// The physical types that occur, by their numbers in the format.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Boolean = 0,
    Int64 = 2,
    Double = 5,
    Text = 6,
}

/// What the footer says of a column's place.
struct Chunk {
    kind: Type,
    offset: usize,
    size: usize,
}

pub(super) fn file(table: &Table) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let mut chunks = Vec::new();
    for column in 0..table.columns.len() {
        let cells: Vec<&Value> = table.rows.iter().map(|row| &row[column]).collect();
        let kind = kind_of(&cells);
        let page = page(kind, &cells);
        let header = Thrift::new()
            .int(1, 0)
            .int(2, page.len() as i64)
            .int(3, page.len() as i64)
            // Plain values, after run-length coded levels.
            .structure(5, Thrift::new().int(1, cells.len() as i64).int(2, 0).int(3, 3).int(4, 3))
            .end();
        chunks.push(Chunk { kind, offset: out.len(), size: header.len() + page.len() });
        out.extend(header);
        out.extend(page);
    }
    let footer = footer(table, &chunks);
    out.extend(&footer);
    out.extend((footer.len() as u32).to_le_bytes());
    out.extend(MAGIC);
    out
}

/// The narrowest type that holds a whole column. What is not finite is the text that stands for it, among numbers a number.
fn kind_of(cells: &[&Value]) -> Type {
    let known = || cells.iter().filter(|cell| !cell.is_null());
    if known().next().is_none() {
        Type::Text
    } else if known().all(|cell| cell.is_boolean()) {
        Type::Boolean
    } else if known().all(|cell| cell.is_i64()) {
        Type::Int64
    } else if known().all(|cell| real(cell).is_some()) {
        Type::Double
    } else {
        Type::Text
    }
}

fn real(cell: &Value) -> Option<f64> {
    match cell {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// Which cells have a value, and those values.
fn page(kind: Type, cells: &[&Value]) -> Vec<u8> {
    let mut levels = Vec::new();
    varint(&mut levels, (cells.len().div_ceil(8) as u64) << 1 | 1);
    levels.extend(bits(cells.iter().map(|cell| !cell.is_null())));
    let mut page = (levels.len() as u32).to_le_bytes().to_vec();
    page.extend(levels);
    let known = cells.iter().filter(|cell| !cell.is_null());
    match kind {
        Type::Boolean => page.extend(bits(known.map(|cell| cell.as_bool() == Some(true)))),
        Type::Int64 => known.for_each(|cell| page.extend(cell.as_i64().unwrap_or_default().to_le_bytes())),
        Type::Double => known.for_each(|cell| page.extend(real(cell).unwrap_or(f64::NAN).to_le_bytes())),
        Type::Text => known.for_each(|cell| {
            let text = cell.as_str().map_or_else(|| cell.to_string(), str::to_owned);
            page.extend((text.len() as u32).to_le_bytes());
            page.extend(text.as_bytes());
        }),
    }
    page
}

/// Eight a byte, the lowest bit first.
fn bits(flags: impl Iterator<Item = bool>) -> Vec<u8> {
    let flags: Vec<bool> = flags.collect();
    let byte = |eight: &[bool]| eight.iter().enumerate().fold(0, |byte, (at, flag)| byte | u8::from(*flag) << at);
    flags.chunks(8).map(byte).collect()
}

fn footer(table: &Table, chunks: &[Chunk]) -> Vec<u8> {
    let rows = table.rows.len() as i64;
    let root = Thrift::new().text(4, "schema").int(5, chunks.len() as i64);
    let mut schema = vec![root.end()];
    let mut columns = Vec::new();
    for (name, Chunk { kind, offset, size }) in table.columns.iter().zip(chunks) {
        // Every column may lack values.
        let element = Thrift::new().int(1, *kind as i64).int(3, 1).text(4, name);
        schema.push(if *kind == Type::Text { element.int(6, 0) } else { element }.end());
        let column = Thrift::new()
            .int(1, *kind as i64)
            .list(2, INT, &[zigzag(0), zigzag(3)])
            .list(3, TEXT, &[text(name)])
            .int(4, 0)
            .long(5, rows)
            .long(6, *size as i64)
            .long(7, *size as i64)
            .long(9, *offset as i64);
        columns.push(Thrift::new().long(2, *offset as i64).structure(3, column).end());
    }
    let size: usize = chunks.iter().map(|chunk| chunk.size).sum();
    let group = Thrift::new().list(1, STRUCT, &columns).long(2, size as i64).long(3, rows);
    Thrift::new()
        .int(1, 1)
        .list(2, STRUCT, &schema)
        .long(3, rows)
        .list(4, STRUCT, &[group.end()])
        .text(6, concat!("regatta ", env!("CARGO_PKG_VERSION")))
        .end()
}

const INT: u8 = 5;
const LONG: u8 = 6;
const TEXT: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// A structure in Thrift's compact protocol, its fields in rising order.
struct Thrift {
    bytes: Vec<u8>,
    last: u8,
}

impl Thrift {
    fn new() -> Self {
        Thrift { bytes: Vec::new(), last: 0 }
    }

    fn field(mut self, id: u8, kind: u8, value: &[u8]) -> Self {
        self.bytes.push((id - self.last) << 4 | kind);
        self.bytes.extend(value);
        Thrift { last: id, ..self }
    }

    fn int(self, id: u8, value: i64) -> Self {
        self.field(id, INT, &zigzag(value))
    }

    fn long(self, id: u8, value: i64) -> Self {
        self.field(id, LONG, &zigzag(value))
    }

    fn text(self, id: u8, value: &str) -> Self {
        self.field(id, TEXT, &text(value))
    }

    fn structure(self, id: u8, value: Thrift) -> Self {
        self.field(id, STRUCT, &value.end())
    }

    fn list(self, id: u8, kind: u8, items: &[Vec<u8>]) -> Self {
        let mut value = Vec::new();
        match items.len() {
            few @ 0..15 => value.push((few as u8) << 4 | kind),
            many => {
                value.push(0xf0 | kind);
                varint(&mut value, many as u64);
            }
        }
        value.extend(items.concat());
        self.field(id, LIST, &value)
    }

    fn end(mut self) -> Vec<u8> {
        self.bytes.push(0);
        self.bytes
    }
}

fn text(value: &str) -> Vec<u8> {
    let mut out = Vec::new();
    varint(&mut out, value.len() as u64);
    out.extend(value.as_bytes());
    out
}

fn zigzag(value: i64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(&mut out, (value << 1 ^ value >> 63) as u64);
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
