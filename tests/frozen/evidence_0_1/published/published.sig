{
  "key": "sha256:9705bcd854fdf98170aad2b707731e46e245e2fc982b387f6513b9f0b1fc569b",
  "signature": "KbSCSe/sopu/YvnINPix+uCOJ1D6cGU6ArAY07AfWN0nSfns3Tgyelz+9SPgPxyJtn6LLnWWYQG3OzM48Z7pAw=="
}
