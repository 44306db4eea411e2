"""How the app looks: system fonts, colours that keep their contrast in light and in dark."""

from __future__ import annotations

from pathlib import Path

from gradio.themes.base import Base
from gradio.themes.utils import colors, sizes

HERE = Path(__file__).parent
STYLE = HERE / "style.css"
SCRIPT = HERE / "app.js"
ICON = HERE / "icon.png"


def theme() -> Base:
    """Nothing is fetched for it: every font is the reader's own."""
    made = Base(
        primary_hue=colors.teal,
        secondary_hue=colors.teal,
        neutral_hue=colors.slate,
        radius_size=sizes.radius_lg,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )
    return made.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="#0e1416",
        background_fill_primary_dark="#151d20",
        background_fill_secondary_dark="#0e1416",
        block_background_fill_dark="#151d20",
        block_border_width="1px",
        block_border_color_dark="#2b373b",
        border_color_primary_dark="#2b373b",
        input_background_fill_dark="#1a2427",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color="*neutral_600",
        block_title_text_color="*neutral_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_text_color="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_dark="#1a2427",
        button_secondary_border_color="*neutral_200",
        button_secondary_border_color_dark="#2b373b",
        button_border_width="1px",
        button_cancel_background_fill="#b42318",
        button_cancel_background_fill_hover="#912018",
        button_cancel_background_fill_dark="#b42318",
        button_cancel_text_color="white",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
        slider_color="*primary_700",
        slider_color_dark="*primary_400",
        checkbox_background_color_selected="*primary_700",
        checkbox_background_color_selected_dark="*primary_600",
    )  # fmt: skip
