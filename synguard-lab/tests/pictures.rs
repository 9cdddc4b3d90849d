//! `synguard-pictures`: the picture of `top` can be made, and shows what it should. That of the dashboard
//! is drawn where its queries are tested.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

#[test]
fn top_is_drawn_with_its_selected_row() {
    if !synguard_lab::skip_unless_root("pictures") {
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_synguard-pictures"))
        .args(["top", "--brief"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let svg = String::from_utf8(output.stdout).unwrap();
    assert!(
        svg.starts_with("<svg ") && svg.ends_with("</svg>\n"),
        "{svg}"
    );
    let texts: Vec<(&str, &str)> = svg
        .lines()
        .filter_map(|line| {
            let (attributes, text) = line.strip_prefix("<text ")?.split_once('>')?;
            let (_, fill) = attributes.split_once("fill=\"")?;
            Some((fill.get(..7)?, text.strip_suffix("</text>")?))
        })
        .collect();
    let fills = |text: &str| -> Vec<&str> {
        let found = texts.iter().filter(|(_, each)| each.trim() == text);
        found.map(|(fill, _)| *fill).collect()
    };
    // The name of the selected service is reversed, in its row; not so in the heading below.
    let [row, heading] = fills("web")[..] else {
        panic!("{texts:?}");
    };
    assert_ne!(row, heading, "{texts:?}");
    assert_eq!(fills("api"), [heading]);
    let guarded = texts.iter().any(|(_, text)| text.starts_with("guarded "));
    assert!(guarded, "{texts:?}");
}
