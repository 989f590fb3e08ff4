//! Renders a snapshot as Prometheus text, format 0.0.4.

use prometheus::TextEncoder;
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};

use super::{
    CLUSTER_METRICS, Counter, Gauge, HISTOGRAMS, Histogram, LABELLED, METRICS, MetricKind,
    PROCESS_METRICS, REPLICA_HISTOGRAMS, REPLICA_METRICS, REPLICA_SECONDS, STATE, Snapshot,
};
use crate::task::ReplicaState;

/// Renders all families except empty ones.
pub(super) fn page(snapshot: &Snapshot) -> prometheus::Result<String> {
    let mut families = vec![build()];
    for &(name, kind, help, figure) in METRICS {
        families.push(family(name, kind, help, [([], figure(snapshot))]));
    }
    for &(name, label, help, figures) in LABELLED {
        let figures = figures(snapshot).iter();
        let figures = figures.map(|&(value, count)| ([(label, value)], exact(count)));
        families.push(family(name, Counter, help, figures));
    }
    for &(name, help, histogram) in HISTOGRAMS {
        families.push(histograms(name, help, [([], histogram(snapshot))]));
    }
    let replicas = || snapshot.replicas.iter();
    for &(name, kind, help, figure) in REPLICA_METRICS {
        let figures = replicas().map(|r| ([("replica", r.lane.node.as_str())], exact(figure(r))));
        families.push(family(name, kind, help, figures));
    }
    let (name, help) = STATE;
    let states = replicas().flat_map(|r| {
        ReplicaState::ALL.map(|state| {
            let labels = [("replica", r.lane.node.as_str()), ("state", state.as_str())];
            (labels, f64::from(u8::from(r.lane.state() == state)))
        })
    });
    families.push(family(name, Gauge, help, states));
    for &(name, help, seconds) in REPLICA_SECONDS {
        let figures = replicas().map(|r| ([("replica", r.lane.node.as_str())], seconds(r)));
        families.push(family(name, Gauge, help, figures));
    }
    for &(name, help, histogram) in REPLICA_HISTOGRAMS {
        let figures = replicas().map(|r| ([("replica", r.lane.node.as_str())], histogram(r)));
        families.push(histograms(name, help, figures));
    }
    for &(name, kind, help, figure) in PROCESS_METRICS {
        let figure = snapshot.process.as_ref().and_then(figure);
        families.push(family(name, kind, help, figure.map(|figure| ([], figure))));
    }
    for &(name, kind, help, figure) in CLUSTER_METRICS {
        let figure = snapshot.cluster.as_ref().and_then(figure);
        families.push(family(name, kind, help, figure.map(|figure| ([], figure))));
    }
    families.retain(|family| !family.get_metric().is_empty());
    TextEncoder::new().encode_to_string(&families)
}

type Labels<'a, const N: usize> = [(&'a str, &'a str); N];

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53, which no figure reaches")]
fn exact(figure: u64) -> f64 {
    figure as f64
}

fn build() -> MetricFamily {
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    family(
        "replicator_build_info",
        Gauge,
        "Version of the running binary; always 1.",
        [(version, 1.0)],
    )
}

fn family<'a, const N: usize>(
    name: &str,
    kind: MetricKind,
    help: &str,
    figures: impl IntoIterator<Item = (Labels<'a, N>, f64)>,
) -> MetricFamily {
    let metrics = figures.into_iter().map(|(labels, figure)| {
        let mut metric = labelled(labels);
        match kind {
            Counter => {
                let mut counter = proto::Counter::default();
                counter.set_value(figure);
                metric.set_counter(counter);
            }
            Gauge => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(figure);
                metric.set_gauge(gauge);
            }
        }
        metric
    });
    let kind = match kind {
        Counter => MetricType::COUNTER,
        Gauge => MetricType::GAUGE,
    };
    named(name, kind, help, metrics.collect())
}

fn histograms<'a, const N: usize>(
    name: &str,
    help: &str,
    figures: impl IntoIterator<Item = (Labels<'a, N>, &'a Histogram)>,
) -> MetricFamily {
    let metrics = figures.into_iter().map(|(labels, figures)| {
        let buckets = figures.cumulative().map(|(bound, count)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(figures.count());
        histogram.set_sample_sum(figures.sum());
        let mut metric = labelled(labels);
        metric.set_histogram(histogram);
        metric
    });
    named(name, MetricType::HISTOGRAM, help, metrics.collect())
}

fn labelled<const N: usize>(labels: Labels<'_, N>) -> proto::Metric {
    let pairs = labels.into_iter().map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    });
    proto::Metric::from_label(pairs.collect())
}

fn named(name: &str, kind: MetricType, help: &str, metrics: Vec<proto::Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}
