// One line to the logger of the TensorRT that loaded this library; nothing where there is none.
// Any thread; allocates nothing.
#pragma once

#include <NvInferRuntime.h>

namespace superinfer_tensorrt {

using Severity = nvinfer1::ILogger::Severity;

// Cut at 511 bytes.
[[gnu::format(printf, 2, 3)]] void log(Severity severity, const char* format, ...) noexcept;

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

}  // namespace superinfer_tensorrt
