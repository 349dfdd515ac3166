"""Demonstrations in other formats, HDF5 and LeRobot, turned into the CALVIN format."""

from __future__ import annotations

from rfedge.data.conversion.convert import ConversionResult, convert_dataset
from rfedge.data.conversion.options import ConversionOptions, FieldSource, parse_fields, read_field_file

__all__ = ["ConversionOptions", "ConversionResult", "FieldSource", "convert_dataset", "parse_fields", "read_field_file"]
