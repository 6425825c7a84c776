//! The results as a picture: hit rate and time to first token of each policy, side by side.

use crate::error::Error;
use crate::measure::{Results, Run};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use std::path::Path;

/// Size in pixels.
const SIZE: (u32, u32) = (1100, 460);
/// The built-in face.
pub(crate) const FONT: &str = "sans-serif";
const HIT: RGBColor = RGBColor(38, 105, 166);
/// Mean, median, 99th percentile.
const TTFT: [(&str, RGBColor); 3] =
    [("mean", RGBColor(38, 105, 166)), ("p50", RGBColor(120, 175, 215)), ("p99", RGBColor(217, 119, 54))];
/// Shown for a TTFT of zero on a logarithmic axis, in seconds.
const TTFT_FLOOR_S: f64 = 0.01;

type Draw = Result<(), Box<dyn std::error::Error>>;

/// The picture formats that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Scalable; text stays text.
    Svg,
    /// Pixels.
    Png,
}

/// The format that a file name asks for.
///
/// # Errors
/// [`Error::Usage`] for another ending.
pub fn kind(path: &Path) -> Result<Kind, Error> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("svg") => Ok(Kind::Svg),
        Some("png") => Ok(Kind::Png),
        _ => Err(Error::Usage(format!("--plot {}: the name must end in .svg or .png", path.display()))),
    }
}

/// Draws `results` into `path`.
///
/// # Errors
/// [`Error::Usage`] for an unknown ending, [`Error::Replay`] if drawing fails.
pub fn draw(path: &Path, results: &Results) -> Result<(), Error> {
    let failed =
        |error: Box<dyn std::error::Error>| Error::Replay(format!("cannot draw {}: {error}", path.display()));
    register()?;
    match kind(path)? {
        Kind::Svg => panels(&SVGBackend::new(path, SIZE).into_drawing_area(), results),
        Kind::Png => panels(&BitMapBackend::new(path, SIZE).into_drawing_area(), results),
    }
    .map_err(failed)
}

/// Pictures must look the same where no fonts are installed; the face is in this program.
pub(crate) fn register() -> Result<(), Error> {
    register_font(FONT, FontStyle::Normal, dejavu::sans::regular())
        .map_err(|_| Error::Replay("the built-in font cannot be read".into()))
}

fn panels<B: DrawingBackend>(root: &DrawingArea<B, Shift>, results: &Results) -> Draw
where
    B::ErrorType: 'static,
{
    root.fill(&WHITE)?;
    let scale = &results.scale;
    let title = format!(
        "{}: {} engines holding {:.0} % of the distinct blocks, seed {}",
        scale.trace,
        scale.engines,
        100.0 * scale.capacity.share,
        scale.seed
    );
    let body = root.titled(&title, (FONT, 20))?;
    let (left, right) = body.split_horizontally(SIZE.0 * 2 / 5);
    hit_rates(&left, &results.runs)?;
    ttfts(&right, &results.runs)?;
    root.present()?;
    Ok(())
}

fn hit_rates<B: DrawingBackend>(area: &DrawingArea<B, Shift>, runs: &[Run]) -> Draw
where
    B::ErrorType: 'static,
{
    let mut chart = ChartBuilder::on(area)
        .caption("input tokens served from cache, %", (FONT, 16))
        .margin(12)
        .x_label_area_size(34)
        .y_label_area_size(44)
        .build_cartesian_2d(0f64..runs.len() as f64, 0f64..100f64)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_label_style((FONT, 13))
        .y_label_formatter(&|y| format!("{y}"))
        .draw()?;
    for (number, run) in runs.iter().enumerate() {
        let x = number as f64;
        let y = 100.0 * run.hit_rate.unwrap_or(0.0);
        chart.draw_series([Rectangle::new([(x + 0.2, 0.0), (x + 0.8, y)], HIT.filled())])?;
        let text = run.hit_rate.map_or("-".to_owned(), |_| format!("{y:.1}"));
        chart.draw_series([Text::new(text, (x + 0.38, (y + 5.0).min(99.0)), (FONT, 15))])?;
    }
    names(area, &chart, runs)
}

fn ttfts<B: DrawingBackend>(area: &DrawingArea<B, Shift>, runs: &[Run]) -> Draw
where
    B::ErrorType: 'static,
{
    let value = |run: &Run, which: usize| {
        [run.ttft_mean_s, run.ttft_p50_s, run.ttft_p99_s][which].unwrap_or(0.0).max(TTFT_FLOOR_S)
    };
    let all = || runs.iter().flat_map(|run| (0..TTFT.len()).map(|which| value(run, which)));
    let lowest = 10f64.powf(all().fold(1.0, f64::min).log10().floor());
    // Room above the highest bar for its number and the legend.
    let highest = all().fold(1.0, f64::max) * 10.0;
    let mut chart = ChartBuilder::on(area)
        .caption("time to first token, trace seconds (log scale)", (FONT, 16))
        .margin(12)
        .x_label_area_size(34)
        .y_label_area_size(56)
        .build_cartesian_2d(0f64..runs.len() as f64, (lowest..highest).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_label_style((FONT, 13))
        .y_label_formatter(&|y| format!("{y}"))
        .draw()?;
    for (which, (name, color)) in TTFT.iter().enumerate() {
        let bars = runs.iter().enumerate().map(|(number, run)| {
            let x = number as f64 + 0.14 + 0.24 * which as f64;
            Rectangle::new([(x, lowest), (x + 0.22, value(run, which))], color.filled())
        });
        let legend = *color;
        chart
            .draw_series(bars)?
            .label(*name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], legend.filled()));
        for (number, run) in runs.iter().enumerate() {
            let x = number as f64 + 0.15 + 0.24 * which as f64;
            let text = format!("{:.2}", value(run, which));
            chart.draw_series([Text::new(text, (x, value(run, which) * 1.35), (FONT, 12))])?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font((FONT, 13))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    names(area, &chart, runs)
}

/// Policy names under their bars: the axis itself would put numbers there.
fn names<B: DrawingBackend, C: CoordTranslate>(
    area: &DrawingArea<B, Shift>,
    chart: &ChartContext<'_, B, C>,
    runs: &[Run],
) -> Draw
where
    B::ErrorType: 'static,
{
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    let (xs, ys) = chart.plotting_area().get_pixel_range();
    let (left, top) = area.get_base_pixel();
    let style = TextStyle::from((FONT, 15)).pos(Pos::new(HPos::Center, VPos::Top));
    for (number, run) in runs.iter().enumerate() {
        let width = f64::from(xs.end - xs.start) / runs.len() as f64;
        let x = f64::from(xs.start - left) + width * (number as f64 + 0.5);
        area.draw_text(run.policy, &style, (x.round() as i32, ys.end - top + 10))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
