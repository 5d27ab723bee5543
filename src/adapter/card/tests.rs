//! Tests of the model card.

use super::super::testing::{adapter, factors, files, provenance};
use super::super::{Component, Contents, Format, PeftContents, SingleFile, write_adapter};
use super::*;
use crate::element::Element;
use expect_test::expect;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

fn write(folder: &Path, body: Option<&str>, format: Format) {
    let contents = Contents {
        adapter: &adapter([("q", factors(2, 3, 1))]),
        element: Element::F32,
        provenance: &provenance("update", &[]),
        other_modules: &BTreeSet::new(),
        beside: &[],
        peft: PeftContents { card: body, ..PeftContents::default() },
    };
    write_adapter(folder, &contents, format).unwrap();
}

fn read(folder: &Path) -> String {
    fs::read_to_string(folder.join(CARD_FILE)).unwrap()
}

#[test]
fn cards_have_a_heading_for_the_hub() {
    expect![[r#"
        ---
        base_model: "a \"b\": c\n"
        library_name: peft
        tags:
        - lora
        - cntlora
        ---

        # Title

        <!-- Written by cntlora, which replaces this file only while it is unchanged: 057d769f0689045f1285f7e653365df14e8771e6c866b2df11341c58a7b2b9e8 -->
    "#]]
    .assert_eq(&card("a \"b\": c\n", "# Title"));
}

/// A card that nobody changed is replaced by the next adapter, and removed if the next adapter has none.
#[test]
fn own_cards_are_replaced_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), Some("one"), Format::Peft);
    assert_eq!(author(folder.path()).unwrap(), Author::Us);
    write(folder.path(), Some("two"), Format::Peft);
    assert!(read(folder.path()).contains("\ntwo\n"));
    write(folder.path(), None, Format::SingleFile(SingleFile::Kohya, Component::Unet));
    assert_eq!(author(folder.path()).unwrap(), Author::Nobody);
}

/// A README.md that the user wrote or changed stays as it is, whatever it is.
#[test]
fn files_of_the_user_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(CARD_FILE);
    let kohya = Format::SingleFile(SingleFile::Kohya, Component::Unet);
    let changed = card("base", "one").replace("one", "mine");
    let longer = card("base", "one") + "more\n";
    for text in ["mine", "", changed.as_str(), longer.as_str(), &format!("{SEAL}{END}")] {
        fs::write(&path, text).unwrap();
        for format in [Format::Peft, kohya, Format::Peft] {
            write(folder.path(), Some("two"), format);
            assert_eq!(read(folder.path()), text, "{format:?}");
        }
    }
    fs::write(&path, [0xff, 0xfe]).unwrap();
    write(folder.path(), Some("two"), Format::Peft);
    assert_eq!(fs::read(&path).unwrap(), [0xff, 0xfe]);

    fs::remove_file(&path).unwrap();
    symlink("elsewhere", &path).unwrap();
    write(folder.path(), Some("two"), Format::Peft);
    assert_eq!(fs::read_link(&path).unwrap(), Path::new("elsewhere"));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    write(folder.path(), Some("two"), Format::Peft);
    assert!(path.is_dir());
    fs::remove_dir(&path).unwrap();
    assert_eq!(files(folder.path()).len(), 3);
}
