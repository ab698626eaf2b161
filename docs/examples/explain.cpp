// Explains a photo with a packed explainer (ortcam pack model.onnx -o explainer.onnx) in C++.
//
//     g++ -std=c++17 explain.cpp -I ONNXRUNTIME/include -L ONNXRUNTIME/lib -lonnxruntime -o explain
//     ./explain explainer.onnx photo.ppm map.pgm [class]
//
// Photos come as binary PPM (convert photo.jpg photo.ppm), the map goes out as PGM: white is most salient.
#include <onnxruntime_cxx_api.h>

#include <chrono>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

int main(int argc, char** argv) try {
    if (argc < 4) throw std::runtime_error("usage: explain explainer.onnx photo.ppm map.pgm [class]");

    std::ifstream file(argv[2], std::ios::binary);
    std::string kind;
    int64_t width = 0, height = 0, most = 0;
    file >> kind >> width >> height >> most;
    file.get();
    if (kind != "P6" || most != 255 || width < 1 || height < 1) throw std::runtime_error("photo is no 8-bit PPM (P6)");
    std::vector<uint8_t> pixels(3 * width * height);
    if (!file.read(reinterpret_cast<char*>(pixels.data()), pixels.size())) throw std::runtime_error("photo is cut short");
    int64_t target = argc > 4 ? std::stoll(argv[4]) : -1;  // -1: the class that the model is surest of

    Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "explain");
    Ort::Session session(env, argv[1], Ort::SessionOptions{});
    Ort::AllocatorWithDefaultOptions allocator;
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const int64_t photo_shape[] = {height, width, 3}, target_shape[] = {1};
    std::vector<Ort::Value> inputs;
    inputs.push_back(Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(), photo_shape, 3));
    inputs.push_back(Ort::Value::CreateTensor<int64_t>(memory, &target, 1, target_shape, 1));

    const auto scores_name = session.GetOutputNameAllocated(0, allocator);  // logits or probabilities
    const char* input_names[] = {"image", "target"};
    const char* output_names[] = {scores_name.get(), "target_class", "saliency", "scored", "error"};
    const auto begin = std::chrono::steady_clock::now();
    auto outputs = session.Run(Ort::RunOptions{}, input_names, inputs.data(), 2, output_names, 5);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;

    const int64_t index = *outputs[1].GetTensorData<int64_t>(), scored = *outputs[3].GetTensorData<int64_t>();
    const float* scores = outputs[0].GetTensorData<float>();
    const float* map = outputs[2].GetTensorData<float>();  // [1,height,width] in [0,1]
    const float* error = outputs[4].GetTensorData<float>();  // [1,3]: the estimated 1 - r, and its 90 % interval; 0: exact
    std::cout << "class " << index << ", score " << scores[index] << ", masked images " << scored << ", error " << error[0] << " ("
              << error[1] << " to " << error[2] << "), seconds " << seconds.count() << "\n";

    std::ofstream out(argv[3], std::ios::binary);
    out << "P5\n" << width << " " << height << "\n255\n";
    for (int64_t i = 0; i < width * height; ++i) out.put(static_cast<char>(map[i] * 255 + 0.5f));
    if (!out.flush()) throw std::runtime_error("the map cannot be written");
    return 0;
} catch (const std::exception& fault) {
    std::cerr << "error: " << fault.what() << "\n";
    return 1;
}
