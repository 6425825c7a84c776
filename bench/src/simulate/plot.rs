//! The results as a picture: hit rate over time to first token, one colour a policy.

use super::point::Point;
use crate::error::Error;
use crate::plot::{FONT, Kind, kind, register};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::path::Path;

/// Size in pixels.
const SIZE: (u32, u32) = (1000, 620);
/// Shown for a time of zero on a logarithmic axis, in seconds.
const FLOOR_S: f64 = 0.01;

/// Draws `points` into `path`.
///
/// # Errors
/// [`Error::Usage`] for an unknown ending, [`Error::Replay`] if drawing fails.
pub(super) fn draw(path: &Path, points: &[Point]) -> Result<(), Error> {
    register()?;
    match kind(path)? {
        Kind::Svg => scatter(&SVGBackend::new(path, SIZE).into_drawing_area(), points),
        Kind::Png => scatter(&BitMapBackend::new(path, SIZE).into_drawing_area(), points),
    }
    .map_err(|error| Error::Replay(format!("cannot draw {}: {error}", path.display())))
}

fn scatter<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    points: &[Point],
) -> Result<(), Box<dyn std::error::Error>>
where
    B::ErrorType: 'static,
{
    area.fill(&WHITE)?;
    let seconds = |point: &Point| point.ttft_mean_s.max(FLOOR_S);
    let most = points.iter().map(seconds).fold(1.0, f64::max) * 2.0;
    let least = points.iter().map(seconds).fold(1.0, f64::min) / 2.0;
    let mut chart = ChartBuilder::on(area)
        .caption("Simulated: input tokens from cache over mean time to first token", (FONT, 20))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(52)
        .build_cartesian_2d((least..most).log_scale(), 0f64..100f64)?;
    chart
        .configure_mesh()
        .x_desc("mean time to first token, s (log scale)")
        .y_desc("hit rate, %")
        .label_style((FONT, 13))
        .x_label_formatter(&|x| format!("{x}"))
        .draw()?;
    let mut policies: Vec<&str> = points.iter().map(|point| point.policy).collect();
    policies.sort_unstable();
    policies.dedup();
    for (number, policy) in policies.into_iter().enumerate() {
        let color = Palette99::pick(number).mix(0.9);
        let of = points.iter().filter(|point| point.policy == policy);
        chart
            .draw_series(
                of.map(|point| Circle::new((seconds(point), 100.0 * point.hit_rate), 4, color.filled())),
            )?
            .label(policy)
            .legend(move |(x, y)| Circle::new((x + 6, y), 4, color.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .label_font((FONT, 13))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    area.present()?;
    Ok(())
}
