"""The figure of `mmdet norm-doctor`: each layer's statistics and gradient, by norm."""

from pathlib import Path

_STYLES = {  # colours that stay apart in grey and for the colour-blind
    'BN': dict(color='#d55e00', marker='o'),
    'naive': dict(color='#e69f00', marker='s'),
    'CBN': dict(color='#56b4e9', marker='v'),
    'CBN full gradient': dict(color='#0072b2', marker='D'),
    'CBN full gradient, 1/16': dict(color='#009e73', marker='x'),
    'pooled': dict(color='black', marker='|'),
}


def draw_norms(report: dict, path: Path) -> None:
    """Draw a report (see mmdet/engine/norm_doctor.py) to a file: a row for each layer."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    layers = report['layers']
    figure = Figure(figsize=(11, 0.3 * len(layers) + 1.8), layout='constrained')
    FigureCanvasAgg(figure)
    errors, cosines = figure.subplots(1, 2, sharey=True)
    for norm, style in _STYLES.items():
        for axes, values in (
            (errors, [layer['errors'].get(norm, {}).get('var') for layer in layers.values()]),
            (cosines, [layer['cosines'].get(norm) for layer in layers.values()]),
        ):
            rows = [row for row, value in enumerate(values) if value is not None]
            axes.plot([values[row] for row in rows], rows, linestyle='', label=norm, markersize=7,
                      markerfacecolor='none', **style)
    errors.set_xscale('log')
    errors.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    errors.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{100 * value:.3g} %'))
    errors.xaxis.set_minor_formatter(NullFormatter())
    errors.set_xlabel('relative error of the variance')
    errors.set_yticks(range(len(layers)), [f'{name}  M={layer["M"]:,.0f}' for name, layer in layers.items()])
    errors.invert_yaxis()
    cosines.set_xlabel("cosine with the large batch's gradient")
    cosines.legend(fontsize=8, loc='upper left', bbox_to_anchor=(1, 1))
    for axes in (errors, cosines):
        axes.grid(alpha=0.3)
        axes.tick_params(labelsize=8)
    figure.suptitle(f'{Path(report["config"]).stem}, batch {report["batch_size"]}, '
                    f'{report["truth_batches"]} batches as the truth', fontsize=10)
    figure.savefig(path, dpi=100)
