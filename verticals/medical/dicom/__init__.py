"""DICOM: a CT series to Hounsfield units in patient space, and masks to SEG and RTSTRUCT, read back before they leave."""
