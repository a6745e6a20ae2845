//! Parquet files, written column by column.

use std::sync::Arc;

use ::parquet::basic::{Compression, GzipLevel, ZstdLevel};
use ::parquet::data_type::{ByteArray, ByteArrayType, DoubleType};
use ::parquet::file::properties::{WriterProperties, WriterVersion};
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::parser::parse_message_type;

use super::*;

/// The schema that the `datasets` library writes for UltraChat-200k and UltraFeedback.
const SCHEMA: &str = "message schema {
    optional binary prompt (STRING);
    optional group chosen (LIST) { repeated group list { optional group element {
        optional binary content (STRING); optional binary role (STRING);
    } } }
    optional group rejected (LIST) { repeated group list { optional group element {
        optional binary content (STRING); optional binary role (STRING);
    } } }
    optional double score_chosen;
}";

type Turns<'a> = &'a [(&'a str, &'a str)];

/// Rows of prompt, chosen, rejected and score.
type Rows<'a> = &'a [(&'a str, Turns<'a>, Turns<'a>, Option<f64>)];

fn write(path: &Path, rows: Rows<'_>, properties: WriterProperties, rows_per_group: usize) {
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let mut file = SerializedFileWriter::new(std::fs::File::create(path).unwrap(), schema, properties.into()).unwrap();
    for rows in rows.chunks(rows_per_group) {
        let mut group = file.next_row_group().unwrap();
        let prompts: Vec<&str> = rows.iter().map(|row| row.0).collect();
        strings(&mut group, &prompts, &vec![1; rows.len()], None);
        let (chosen, rejected): (Vec<Turns<'_>>, Vec<Turns<'_>>) = rows.iter().map(|row| (row.1, row.2)).unzip();
        for lists in [chosen, rejected] {
            let repeated: Vec<i16> = lists.iter().flat_map(|list| (0..list.len()).map(|i| i16::from(i > 0))).collect();
            let contents: Vec<&str> = lists.iter().copied().flatten().map(|(_, content)| *content).collect();
            let roles: Vec<&str> = lists.iter().copied().flatten().map(|(role, _)| *role).collect();
            for column in [contents, roles] {
                strings(&mut group, &column, &vec![4; column.len()], Some(&repeated));
            }
        }
        let scores: Vec<f64> = rows.iter().filter_map(|row| row.3).collect();
        let there: Vec<i16> = rows.iter().map(|row| i16::from(row.3.is_some())).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<DoubleType>().write_batch(&scores, Some(&there), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    file.close().unwrap();
}

fn strings(
    group: &mut SerializedRowGroupWriter<'_, std::fs::File>,
    texts: &[&str],
    defined: &[i16],
    repeated: Option<&[i16]>,
) {
    let values: Vec<ByteArray> = texts.iter().map(|text| ByteArray::from(*text)).collect();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&values, Some(defined), repeated).unwrap();
    column.close().unwrap();
}

const ROWS: Rows<'_> = &[
    ("u", &[("user", "u"), ("assistant", "gut")], &[("user", "u"), ("assistant", "bad")], Some(8.5)),
    (
        "ü",
        &[("user", "ü"), ("assistant", "x"), ("user", "v"), ("assistant", "y")],
        &[("user", "ü"), ("assistant", "z")],
        None,
    ),
    ("w", &[("user", "w"), ("assistant", "same")], &[("user", "w"), ("assistant", "same")], Some(0.0)),
];

fn compressions() -> [Compression; 4] {
    [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
    ]
}

#[test]
fn rows_are_records_whatever_the_compression() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train-00000-of-00001.parquet");
    let mut first = pair(vec![user("u")].into(), vec![assistant("gut")].into(), vec![assistant("bad")].into());
    first.score_chosen = Some(8.5);
    let longer = vec![assistant("x"), user("v"), assistant("y")];
    let second = pair(vec![user("ü")].into(), longer.into(), vec![assistant("z")].into());
    let expected = [first, second].map(Example::Preference);
    for compression in compressions() {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            for rows_per_group in [1, 2, 3] {
                let properties =
                    WriterProperties::builder().set_compression(compression).set_writer_version(version).build();
                write(&path, ROWS, properties, rows_per_group);
                let set = load(&path).unwrap();
                assert_eq!(set.examples, expected, "{compression:?} {version:?} {rows_per_group}");
                assert_eq!(set.dropped_identical, 1);
            }
        }
    }
    let set = load(dir.path()).unwrap();
    assert!(set.recognised.starts_with("UltraFeedback, binarized"), "{}", set.recognised);
}

#[test]
fn columns_of_no_known_layout_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    let schema =
        Arc::new(parse_message_type("message schema { required binary body (STRING); required int64 n; }").unwrap());
    let mut file =
        SerializedFileWriter::new(std::fs::File::create(&path).unwrap(), schema, WriterProperties::default().into())
            .unwrap();
    let mut group = file.next_row_group().unwrap();
    strings(&mut group, &["b"], &[0], None);
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<::parquet::data_type::Int64Type>().write_batch(&[1], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    file.close().unwrap();
    let error = format!("{:#}", load(&path).unwrap_err());
    assert!(error.contains("x.parquet, row 1: columns of no known layout: body, n. Expected one of"), "{error}");
}

#[test]
fn damaged_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    write(&path, &ROWS[..1], WriterProperties::default(), 1);
    let whole = std::fs::read(&path).unwrap();
    for (bytes, part) in [
        (whole[..whole.len() - 1].to_vec(), "it was cut off"),
        (whole[1..].to_vec(), "does not begin with PAR1"),
        ([&whole[..4], &whole[whole.len() - 40..]].concat(), "no readable Parquet file"),
    ] {
        std::fs::write(&path, &bytes).unwrap();
        let error = format!("{:#}", load(&path).unwrap_err());
        assert!(error.contains(part) && error.contains("x.parquet"), "{error}");
    }
    // Every byte changed, one at a time: a result or an error, never a crash.
    let mut refused = 0;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xFF;
        std::fs::write(&path, &bytes).unwrap();
        refused += usize::from(load(&path).is_err());
    }
    assert!(refused > whole.len() / 4, "{refused} of {}", whole.len());
}

/// Found by fuzzing: the reader allocated for as many values as the page of a dictionary stated.
#[test]
fn a_dictionary_that_says_it_is_larger_than_its_bytes_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.parquet");
    write(&path, &ROWS[..2], WriterProperties::builder().set_compression(Compression::UNCOMPRESSED).build(), 2);
    let mut bytes = std::fs::read(&path).unwrap();
    // After PAR1 the header of a dictionary page: its type, two lengths, and in it the number of values, 2 as 4.
    assert_eq!((&bytes[4..6], bytes[6], bytes[8], &bytes[10..13]), (&[0x15, 4][..], 0x15, 0x15, &[0x4C, 0x15, 4][..]));
    bytes[12] = 0x7E;
    std::fs::write(&path, &bytes).unwrap();
    let error = format!("{:#}", load(&path).unwrap_err());
    assert!(error.contains("column prompt says that it has more values than its bytes can hold"), "{error}");
}
