//! Renders a snapshot as Prometheus text, format 0.0.4.

use super::{
    HISTOGRAMS, Histogram, LABELLED, LAG, METRICS, PROCESS_METRICS, REPLICA_HISTOGRAMS,
    REPLICA_METRICS, ReplicaSnapshot, Snapshot,
};

/// Renders all families except empty ones.
pub fn to_prometheus(snapshot: &Snapshot) -> String {
    let mut page = Page(String::new());
    let version = Some(("version", env!("CARGO_PKG_VERSION")));
    page.figures(
        "replicator_build_info",
        "Version of the running binary; always 1.",
        [(version, 1.0)],
    );
    for &(name, help, figure) in METRICS {
        page.figures(name, help, [(None, figure(snapshot))]);
    }
    for &(name, label, help, figures) in LABELLED {
        let figures = figures(snapshot).iter();
        page.figures(name, help, figures.map(|&(value, n)| (Some((label, value)), exact(n))));
    }
    for &(name, help, histogram) in HISTOGRAMS {
        page.histograms(name, help, [(None, histogram(snapshot))]);
    }
    let replicas = || snapshot.replicas.iter().map(|replica| (label(replica), replica));
    for &(name, help, figure) in REPLICA_METRICS {
        page.figures(name, help, replicas().map(|(label, r)| (label, exact(figure(r)))));
    }
    let (name, help, lag) = LAG;
    page.figures(name, help, replicas().map(|(label, r)| (label, lag(r))));
    for &(name, help, histogram) in REPLICA_HISTOGRAMS {
        page.histograms(name, help, replicas().map(|(label, r)| (label, histogram(r))));
    }
    for &(name, help, figure) in PROCESS_METRICS {
        let figure = snapshot.process.as_ref().and_then(figure);
        page.figures(name, help, figure.map(|figure| (None, figure)));
    }
    page.0
}

type Label<'a> = Option<(&'a str, &'a str)>;

fn label(replica: &ReplicaSnapshot) -> Label<'_> {
    Some(("replica", replica.lane.node.as_str()))
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53, which no figure reaches")]
fn exact(figure: u64) -> f64 {
    figure as f64
}

struct Page(String);

impl Page {
    fn figures<'a>(
        &mut self,
        name: &str,
        help: &str,
        figures: impl IntoIterator<Item = (Label<'a>, f64)>,
    ) {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        let mut figures = figures.into_iter().peekable();
        if figures.peek().is_some() {
            self.head(name, kind, help);
        }
        for (label, figure) in figures {
            self.sample(name, label, figure);
        }
    }

    fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        histograms: impl IntoIterator<Item = (Label<'a>, &'a Histogram)>,
    ) {
        let [bucket, sum, count] = ["bucket", "sum", "count"].map(|part| format!("{name}_{part}"));
        let mut histograms = histograms.into_iter().peekable();
        if histograms.peek().is_some() {
            self.head(name, "histogram", help);
        }
        for (label, histogram) in histograms {
            for (bound, count) in histogram.cumulative() {
                let bound = bound.to_string();
                self.sample(&bucket, label.into_iter().chain([("le", &*bound)]), exact(count));
            }
            let all = exact(histogram.count());
            self.sample(&bucket, label.into_iter().chain([("le", "+Inf")]), all);
            self.sample(&sum, label, histogram.sum());
            self.sample(&count, label, all);
        }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.0 += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample<'a>(
        &mut self,
        name: &str,
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
        figure: f64,
    ) {
        self.0 += name;
        let mut separator = '{';
        for (label, value) in labels {
            let value = value.replace('\\', r"\\").replace('\n', r"\n").replace('"', r#"\""#);
            self.0 += &format!("{separator}{label}=\"{value}\"");
            separator = ',';
        }
        if separator == ',' {
            self.0.push('}');
        }
        self.0 += &format!(" {figure}\n");
    }
}
