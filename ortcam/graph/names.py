"""The names of a scoring graph's inputs and outputs. A group has P photos, a batch has B rows for T targets."""

PHOTOS = "ortcam.photos"  # [P,C,H,W] or [P,H,W,C]: the photos, or the features of a layer
PHOTO_INDEX = "ortcam.photo_index"  # int64 [B], or [1] for all rows
BANK = "ortcam.activations"  # [A,h,w]: the channels of all photos, or given maps
NUMBERS = "ortcam.channels"  # int64 [B]: the mask of the bank
AFFINE = "ortcam.affine"  # [B,3,1,1]: shift, scale, offset
ROWS = "ortcam.rows"  # [1,1,H,h], or [B,1,H,h] with the same matrix for every row; of grids [S,1,H,h], one a shift
COLUMNS = "ortcam.columns"  # [w,W]; of grids [S,1,w,W]
TARGETS = "ortcam.targets"  # int64 [B,T]
COLOUR = "ortcam.colour"  # [1,C,1,1] or [1,1,1,C]: the baseline
BLUR_ROWS = "ortcam.blur_rows"  # [H,H]: the baseline is BLUR_ROWS @ photo @ BLUR_COLUMNS
BLUR_COLUMNS = "ortcam.blur_columns"  # [W,W]
GRID_CELLS = "ortcam.grid_cells"  # int64 [s,s]: what the hash of each cell begins with
GRID_SHIFTS = "ortcam.grid_shifts"  # int64 [2]: what the hash of the shifts down and across begins with
GRID_LIMIT = "ortcam.grid_limit"  # int64 [1]: a cell with a lower hash is shown

LOGITS = "ortcam.logits"  # [B,N]: what the scores are taken from; [B,2] of a single score, its negation first
TARGET_LOGITS = "ortcam.target_logits"  # [B,T]
TARGET_LOG_PROBABILITIES = "ortcam.target_log_probabilities"  # [B,T]
