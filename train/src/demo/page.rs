//! `index.html`: a page of its own about a demo run: pictures, accuracy, loss curves, sample grids over time.

use std::fmt::Write;
use std::path::Path;

use super::plan::Plan;
use crate::config::StageKind;
use crate::eval::{HEADS, Table};
use crate::{Error, Result, files, metrics};

/// Grids of one stage that the page shows, the newest included.
const GRIDS: usize = 4;

/// Writes the page; everything is inside the one file.
pub fn write(dir: &Path, plan: &Plan, table: Option<&Table>, hash: &str) -> Result<()> {
    let mut body = String::new();
    body.push_str("<h1>unclip demo</h1>\n");
    let what = match &plan.data {
        None => format!("{} captioned shapes", plan.pictures),
        Some(data) => format!("the pictures of {}", escaped(data)),
    };
    push(
        &mut body,
        format_args!(
            "<p>CLIP, prior, decoder and upsampler, trained from nothing on {what}. Weights <code>{}</code>, seed {}.</p>\n",
            &hash[..hash.len().min(16)],
            plan.seed
        ),
    );
    push(
        &mut body,
        format_args!(
            "<img src=\"{}\" alt=\"pictures with their captions\">\n",
            embedded(&dir.join("samples.png"))?
        ),
    );
    if let Some(table) = table {
        body.push_str("<h2>Accuracy</h2>\n<p>A program reads the pictures and compares them with their prompts. Held \
                       out: pairs of colour and shape that no training picture shows.</p>\n");
        body.push_str(&accuracy(table));
    }
    body.push_str("<h2>Training</h2>\n");
    for stage in StageKind::ALL {
        body.push_str(&training(dir, stage)?);
    }
    body.push_str(&next(dir));
    let page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>unclip demo</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n"
    );
    files::replace(&dir.join("index.html"), page.as_bytes())
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#222;background:#fafaf8}img{max-width:100%;image-rendering:pixelated;display:block;margin:.5rem 0}\
table{border-collapse:collapse}td,th{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #ddd}\
td:first-child,th:first-child{text-align:left}svg{width:100%;height:auto;background:#fff;border:1px solid #ddd}\
code,pre{background:#eee;padding:.1rem .3rem}pre{padding:.6rem;overflow:auto}";

/// Commands to try with the run in `dir`.
fn next(dir: &Path) -> String {
    let dir = escaped(&dir.display().to_string());
    format!(
        "<h2>What to try next</h2>\n<pre>\
         unclip generate --model {dir} -p \"a large yellow star on a black background\" -n 4 --seed 7\n\
         unclip generate --model {dir} -p \"a small red circle above a large blue square on a white background\" --trajectory\n\
         unclip eval {dir} --from embedding      # how much of the loss is the prior's\n\
         unclip eval {dir} --from small          # … and how much is the upsampler's\n\
         unclip demo --minutes 60 -o runs/longer\n\
         unclip demo --data 'shards/{{00000..00003}}.tar' -o runs/mine</pre>\n"
    )
}

fn push(out: &mut String, arguments: std::fmt::Arguments) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(arguments);
}

fn accuracy(table: &Table) -> String {
    let mut out = String::from("<table><tr><th></th>");
    for head in HEADS {
        push(&mut out, format_args!("<th>{head}</th>"));
    }
    out.push_str("</tr>\n");
    for row in &table.rows {
        push(
            &mut out,
            format_args!("<tr><td>{}</td>", escaped(&row.kind)),
        );
        for cell in row.cells() {
            push(&mut out, format_args!("<td>{cell}</td>"));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
    out
}

/// A stage's loss curve and the grids that it left.
fn training(dir: &Path, stage: StageKind) -> Result<String> {
    let run = dir.join(stage.name());
    let lines = metrics::read(&run.join("metrics.jsonl"))?;
    let points: Vec<(f64, f64)> = lines
        .iter()
        .filter_map(|line| Some((line["step"].as_f64()?, line["loss"].as_f64()?)))
        .collect();
    let mut out = format!("<h3>{stage}</h3>\n");
    out.push_str(&curve(&points));
    let samples = run.join("samples");
    let mut grids = match samples.is_dir() {
        true => files::walk(&samples)?,
        false => Vec::new(),
    };
    // Evenly spread over the run, the last one always.
    let count = grids.len();
    let mut at = 0;
    grids.retain(|_| {
        at += 1;
        count <= GRIDS || (at * GRIDS) / count > ((at - 1) * GRIDS) / count
    });
    for grid in grids {
        let step = grid.file_stem().unwrap_or_default().to_string_lossy();
        push(
            &mut out,
            format_args!(
                "<p>{}</p><img src=\"{}\" alt=\"sample pictures\">\n",
                escaped(&step.replace("-0", " ").replace('-', " ")),
                embedded(&samples.join(&grid))?
            ),
        );
    }
    Ok(out)
}

/// A line of (x, y) as SVG, y on a logarithmic scale.
fn curve(points: &[(f64, f64)]) -> String {
    let points: Vec<(f64, f64)> = points.iter().copied().filter(|p| p.1 > 0.0).collect();
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return String::new();
    };
    let low = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = points.iter().map(|p| p.1).fold(0.0, f64::max);
    let span = (high / low).ln().max(1e-9);
    let (width, height, margin) = (800.0, 200.0, 30.0);
    let x = |step: f64| {
        margin + (step - first.0) / (last.0 - first.0).max(1.0) * (width - 2.0 * margin)
    };
    let y = |loss: f64| height - margin - (loss / low).ln() / span * (height - 2.0 * margin);
    let line: Vec<String> = points
        .iter()
        .map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1)))
        .collect();
    format!(
        "<svg viewBox=\"0 0 {width} {height}\"><polyline fill=\"none\" stroke=\"#2a6\" stroke-width=\"1.5\" \
         points=\"{}\"/><g font-size=\"12\" fill=\"#555\"><text x=\"4\" y=\"16\">loss {high:.4}</text>\
         <text x=\"4\" y=\"{}\">{low:.4}</text><text x=\"{}\" y=\"{}\" text-anchor=\"end\">step {}, loss {:.4}</text>\
         </g></svg>\n",
        line.join(" "),
        height - 8.0,
        width - 4.0,
        height - 8.0,
        last.0,
        last.1
    )
}

/// A picture as a data URL.
fn embedded(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    Ok(format!("data:image/png;base64,{}", base64(&bytes)))
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = ALPHABET[(word >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { digit as char } else { '=' });
        }
    }
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test vectors of RFC 4648, section 10.
    #[test]
    fn base64_known_answers() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn curves_stay_inside_their_frame() {
        let svg = curve(&[(10.0, 4.0), (20.0, 1.0), (30.0, 2.0)]);
        assert!(svg.contains("30.0,30.0"), "{svg}");
        assert!(svg.contains("400.0,170.0"), "{svg}");
        assert_eq!(curve(&[]), "");
    }
}
