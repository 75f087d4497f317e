"""Controls in the engines that people serve models with: each exported form in its engine beside the control at run time.

`make engines` installs vLLM and llama.cpp in environments of their own (`.engines/`), runs everything and writes docs/engines.md. `in_vllm.py` and
`in_llama_cpp.py` run there, without this package's own dependencies; the rest runs beside `demeanor`.
"""
