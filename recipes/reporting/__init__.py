"""The evaluation report: run folders in, one static folder of HTML, audio and pictures out."""
