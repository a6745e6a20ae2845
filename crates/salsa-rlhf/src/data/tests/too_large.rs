//! Small files that would expand: each is refused before much memory is used.

use std::sync::Arc;

use ::parquet::{
    basic::{Compression, GzipLevel, ZstdLevel},
    data_type::{ByteArray, ByteArrayType},
    file::{
        properties::{WriterProperties, WriterVersion},
        writer::SerializedFileWriter,
    },
    schema::parser::parse_message_type,
};

use super::*;

fn gzip(path: &Path, parts: &[&[u8]]) {
    let file = std::fs::File::create(path).unwrap();
    let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    parts.iter().for_each(|part| packed.write_all(part).unwrap());
    packed.finish().unwrap();
}

#[test]
fn a_record_longer_than_any_is_refused_where_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let long = vec![b'a'; 17 << 20];
    let table: [(&str, [&[u8]; 3], &str); 6] = [
        ("x.jsonl", [b"{\"text\":\"b\"}\n{\"text\":\"", &long, b"\"}\n"], "x.jsonl, line 2: it is longer than 16 MiB"),
        ("x.jsonl.gz", [b"{\"text\":\"", &long, b"\"}\n"], "x.jsonl.gz, line 1: it is longer than 16 MiB"),
        ("x.json", [b"[{\"text\":\"b\"},{\"text\":\"", &long, b"\"}]"], "x.json, record 2: it is longer than 16 MiB"),
        ("x.json.gz", [b"[{\"text\":\"", &long, b"\"}]"], "x.json.gz, record 1: it is longer than 16 MiB"),
        ("x.csv", [b"text\n\"", &long, b"\n"], "x.csv, line 2: it is longer than 16 MiB"),
        ("x.tsv", [b"text\n\"", &long, b"\n"], "Is a quotation mark never closed?"),
    ];
    for (name, parts, expected) in table {
        let path = dir.path().join(name);
        if name.ends_with(".gz") {
            gzip(&path, &parts);
        } else {
            std::fs::write(&path, parts.concat()).unwrap();
        }
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // Many records within the limit do not count as one long record.
    let line = [b"{\"text\":\"", &long[..6 << 20], b"\"}\n"].concat();
    std::fs::write(dir.path().join("x.jsonl"), line.repeat(3)).unwrap();
    assert_eq!(load(&dir.path().join("x.jsonl")).unwrap().examples.len(), 3);
    let element = &line[..line.len() - 1];
    std::fs::write(dir.path().join("x.json"), [b"[", element, b",", element, b",", element, b"]"].concat()).unwrap();
    assert_eq!(load(&dir.path().join("x.json")).unwrap().examples.len(), 3);
}

#[test]
fn records_that_need_more_memory_than_there_is_are_refused() {
    let mut room = Room::of(1000);
    room.take(600, Path::new("x.jsonl")).unwrap();
    room.take(400, Path::new("x.jsonl")).unwrap();
    let error = room.take(1, Path::new("x.jsonl")).unwrap_err().to_string();
    assert!(error.contains("x.jsonl: its records need more memory than there is"), "{error}");
    let example = one(r#"{"prompt":"12345","completion":"1234567890"}"#);
    let longer = one(r#"{"prompt":"12345","completion":"12345678901"}"#);
    assert_eq!(limits::bytes_of(&longer), limits::bytes_of(&example) + 1);
}

/// A Parquet file of one column of texts (of lists of texts, if `levels` marks where rows begin), written with as few
/// pages as possible.
fn write(path: &Path, texts: &[ByteArray], levels: Option<(&[i16], &[i16])>, properties: WriterProperties) {
    let schema = match levels {
        None => "message schema { required binary text (STRING); }",
        Some(_) => {
            "message schema { optional group turns (LIST) { repeated group list {
                optional binary element (STRING); } } }"
        }
    };
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let file = std::fs::File::create(path).unwrap();
    let mut file = SerializedFileWriter::new(file, schema, properties.into()).unwrap();
    let mut group = file.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let (defined, repeated) = levels.unzip();
    column.typed::<ByteArrayType>().write_batch(texts, defined, repeated).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    file.close().unwrap();
}

fn properties(version: WriterVersion) -> WriterProperties {
    WriterProperties::builder()
        .set_writer_version(version)
        .set_data_page_row_count_limit(usize::MAX)
        .set_dictionary_page_size_limit(usize::MAX)
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(::parquet::file::properties::EnabledStatistics::None)
        .build()
}

#[test]
fn a_dictionary_of_one_long_text_for_many_rows_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let text = ByteArray::from(vec![b'a'; 2 << 20]);
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        write(&path, &vec![text.clone(); 600], None, properties(version));
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains("x.parquet, behind row 0: its rows unpack to more than 1024 MiB, far more"), "{error}");
        write(&path, &vec![text.clone(); 3], None, properties(version));
        assert_eq!(load(&path).unwrap().examples.len(), 3);
    }
}

#[test]
fn a_row_of_many_values_or_long_ones_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let levels = |rows: &[usize]| -> (Vec<i16>, Vec<i16>) {
        let repeated: Vec<i16> = rows.iter().flat_map(|count| (0..*count).map(|i| i16::from(i > 0))).collect();
        (vec![3; repeated.len()], repeated)
    };
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        let load = |text: &str, rows: &[usize]| {
            let (defined, repeated) = levels(rows);
            let text = ByteArray::from(text);
            write(&path, &vec![text; defined.len()], Some((&defined, &repeated)), properties(version));
            super::load(&path).map_err(|e| e.to_string())
        };
        assert_eq!(load("u", &[2, 100_000, 1]).unwrap().examples.len(), 3);
        let error = load("u", &[2, 500_000, 1]).unwrap_err();
        assert!(error.contains("a row has more than 419430 values in column turns.list.element"), "{error}");
        let error = load(&"u".repeat(1 << 20), &[2, 17]).unwrap_err();
        assert!(error.contains("a row: it is longer than 16 MiB"), "{error}");
    }
}

#[test]
fn a_gzip_page_that_unpacks_to_more_than_it_says_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let text = ByteArray::from(vec![b'a'; 4000]);
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        let gzip = WriterProperties::builder()
            .set_writer_version(version)
            .set_compression(Compression::GZIP(GzipLevel::default()))
            .set_dictionary_enabled(false)
            .set_encoding(::parquet::basic::Encoding::PLAIN)
            .build();
        write(&path, std::slice::from_ref(&text), None, gzip);
        load(&path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        // After PAR1 the header of the page: its type, and then its unpacked size, 4004 as 8008.
        assert_eq!((bytes[6], &bytes[7..9]), (0x15, &[0xC8, 0x3E][..]));
        bytes[8] = 0x1E;
        std::fs::write(&path, &bytes).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains("a page unpacks to more than the 1956 bytes that it says"), "{error}");
    }
}
